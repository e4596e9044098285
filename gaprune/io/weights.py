"""Read a checkpoint without running code from it, and load it into a network."""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from gaprune.errors import InputError, about
from gaprune.io.bounded_reading import read_object, reason
from gaprune.io.manifest import check_recorded
from gaprune.io.semi_structured_packing import unpacked
from gaprune.io.sparse import is_sparse, load_sparse
from gaprune.io.state_dicts import LoadedWeights, select_state, some, without_prefix
from gaprune.io.tensor_files import (
    check_dense,
    is_torchscript,
    load_tensors,
    load_torch,
    open_tensors,
)

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".th", ".tar")
INDEX = ".index.json"  # end of the name of a list of shards
# Components that torch's wrappers (DataParallel, torch.compile) put in front of parameter names.
_WRAPPERS = ("module", "_orig_mod")
# First bytes of files that are often taken for weights, what they are, and the way out.
_OTHER_FORMATS = {
    b"GGUF": "is a GGUF file of llama.cpp; load it as hf:FILE.gguf, or name safetensors",
    b"version https://git-lfs": "is a pointer of Git LFS; fetch the file with git lfs pull",
    b"\x89HDF": "is an HDF5 file of Keras; convert it to a state dict of PyTorch first",
    b"<!DOCTYPE": "is a web page and not the file it links to; fetch the file itself",
    b"<html": "is a web page and not the file it links to; fetch the file itself",
}
# A file in a folder of shards without names → how to make one file of the folder.
_SHARDED = {
    ".metadata": "torch.distributed.checkpoint.format_utils.dcp_to_torch_save(folder, file)",
    "zero_to_fp32.py": "python zero_to_fp32.py FOLDER OUTPUT",
}


def load_checkpoint(
    path: Path, *, key: str | None = None, max_bytes: int | None = None
) -> LoadedWeights:
    """Return the named tensors of a file, on the CPU, in its order, and which ones they are.

    `.safetensors` files may also be sparse or packed 2:4 ones of `gaprune export`. Files of
    `torch.save` hold a state dict, or mappings that hold one; what lies beside it is passed over. A
    pickle that contains anything but tensors, plain containers and `HARMLESS` objects is refused
    before any of it runs. A file `*.index.json` stands for the shards that it lists.

    Args:
        path: the file.
        key: which of several state dicts, see `select_state`; None for the usual one.
        max_bytes: the most that tensors of a sparse file may take; None is this machine's memory.

    Raises:
        InputError: the file is missing, empty, a directory, of another format, damaged, holds code,
            differs from `export.json` or `result.json` beside it, or maps no names to tensors.
        GapruneError: a compressed sparse file needs Zstandard, which is not installed.
    """
    path = Path(path)
    try:
        content = _read_file(path, max_bytes)
    except OSError as error:
        raise InputError(f"weights: cannot read {path} ({error.strerror or error})") from error
    try:
        content, origin = select_state(content, key)
    except InputError as error:
        raise InputError(str(error).replace("weights: it", f"weights: {path}", 1)) from error
    return LoadedWeights(_named_tensors(content, path), f"weights from {path}{origin}")


def load_state(path: Path, *, max_bytes: int | None = None) -> dict[str, Tensor]:
    """Return the named tensors of a file; see `load_checkpoint`."""
    return load_checkpoint(path, max_bytes=max_bytes).state


def apply_state(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Copy a state dict into `model`, in place; every name, shape and number type must fit.

    Wrapper prefixes (`module.`, `_orig_mod.`, nested or on a compiled submodule, or one of a
    trainer's that all names of the network share) are removed, and a tied parameter may be present
    under one of its names only. Floating types are converted to those of the network.

    Return the names that are left out because they are not behind the trainer's prefix.

    Raises:
        InputError: other names, shapes or number types, two values for one tied parameter, or a
            pruned or parametrised network. After an error about names others may be copied already.
    """
    # keep_vars: the parameters themselves, so that tied ones are the same object
    whole = model.state_dict(keep_vars=True)
    expected = tensors_of(whole)
    _check_plain(state, expected)
    state, left_out = plain_names(state, expected)
    state |= _implied(state, expected)
    _check_fits(state, expected)  # before anything is copied
    complete = dict(state)
    if len(expected) < len(whole):  # only the network itself has these, and their versions
        complete = {name: whole[name] for name in whole if name not in expected} | complete
        complete = OrderedDict(complete)
        complete._metadata = whole._metadata  # type: ignore[attr-defined] # noqa: SLF001
    try:
        # torch compares the names after the network's own renaming hooks have run
        missing, unexpected = model.load_state_dict(complete, strict=False)
    except RuntimeError as error:
        raise InputError(f"weights: do not fit {type(model).__name__}: {error}") from error
    if missing or unexpected:
        parts = [
            f"{label} {len(names)} ({some(names)})"
            for label, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise InputError(
            f"weights: the names must be those of {type(model).__name__}; {', '.join(parts)}; "
            "check that the checkpoint belongs to this network"
        )
    return left_out


def left_out_note(names: Sequence[str]) -> str:
    """Return what is added to the origin of weights if names of the file were left out."""
    return f", without {some(names)}" if names else ""


def plain_names(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return a state dict under the names that a network expects, and the names left out.

    Args:
        state: the names in the file, possibly behind prefixes.
        expected: the network's own, tied ones with the same tensor.

    Raises:
        InputError: see `without_prefix`.
    """
    state = _without_wrappers(state, expected)
    if any(name in state for name in expected):
        return state, []
    groups: dict[int, list[str]] = {}
    for name, tensor in expected.items():
        if not _is_counter(name):
            groups.setdefault(id(tensor), []).append(name)
    return without_prefix(state, groups.values())


def tensors_of(state: Mapping[str, object]) -> dict[str, Tensor]:
    """Return the entries of a state dict that are tensors.

    Modules may add others: `get_extra_state` returns any object, and quantised layers are packed.
    """
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def sha256_of(model_state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors: names, dtypes, shapes and bytes, in any order.

    Device and memory layout do not matter; every bit of every value does.
    """
    digest = hashlib.sha256()
    for name in sorted(model_state):
        tensor = model_state[name].detach().cpu().contiguous()
        header = json.dumps([name, str(tensor.dtype), list(tensor.shape)])
        digest.update(header.encode() + b"\n")  # JSON escapes line ends: no ambiguity
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_file(path: Path, max_bytes: int | None) -> object:
    """Return the content of a file, after checks of what it is."""
    _check_format(path)
    if path.name.endswith(INDEX):
        return _read_shards(path, max_bytes)
    is_safetensors = path.suffix.lower() == ".safetensors"
    content = _read_safetensors(path, max_bytes) if is_safetensors else _read_torch(path)
    check_recorded(path)  # afterwards: a damaged format has the clearer message
    return content


def _check_format(path: Path) -> None:
    if path.is_dir():
        remedy = "name the file inside it"
        for name, command in _SHARDED.items():
            if (path / name).is_file():
                remedy = f"make one file of its parts: {command}"
        raise InputError(f"weights: {path} is a directory; {remedy}")
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise InputError(f"weights: {path} is empty (0 bytes); save or fetch it again")
    for magic, description in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise InputError(f"weights: {path} {description}")
    if path.suffix.lower() not in SUFFIXES and not path.name.endswith(INDEX):
        raise InputError(
            f"weights: {path} must end in one of {', '.join(SUFFIXES)} or {INDEX}, "
            f"got {path.suffix!r}"
        )


def _read_shards(path: Path, max_bytes: int | None) -> dict[str, object]:
    try:
        index = read_object(path).get("weight_map")
    except ValueError as error:
        raise InputError(f"weights: {path} is damaged ({reason(error)})") from error
    if not isinstance(index, dict) or not index:
        raise InputError(f"weights: {path} must hold a weight_map of names and files")
    tensors: dict[str, object] = {}
    for name in dict.fromkeys(index.values()):
        if not isinstance(name, str) or Path(name).name != name or name.endswith(INDEX):
            raise InputError(f"weights: {path} must list files beside it, got {name!r}")
        shard = _read_file(path.parent / name, max_bytes)
        if not isinstance(shard, Mapping):
            raise InputError(f"weights: {path.parent / name} must hold a state dict")
        tensors |= shard
    if missing := [name for name in index if name not in tensors]:
        raise InputError(f"weights: the files that {path} lists lack {some(missing)}")
    return tensors


def _read_safetensors(path: Path, max_bytes: int | None) -> object:
    try:
        with open_tensors(path) as file:
            sparse = is_sparse(file)
        return load_sparse(path, max_bytes=max_bytes) if sparse else unpacked(load_tensors(path))
    except InputError as error:  # of the sparse format; the user named `weights`
        raise about("weights", error) from error
    except (SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(
            f"weights: {path} is damaged or not a safetensors file ({error}); fetch it again"
        ) from error


def _read_torch(path: Path) -> object:
    if is_torchscript(path):
        raise InputError(
            f"weights: {path} is TorchScript, a program; save model.state_dict() of the Python "
            "network, or torch.jit.load(path).state_dict() if you trust the file"
        )
    try:
        return load_torch(path)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise any type at all
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise InputError(
                f"weights: {path} holds more than tensors: it asks to run or build "
                f"{code[1].rstrip('.')!r}, which is refused; save the weights alone with "
                "torch.save(model.state_dict(), path) or as safetensors"
            ) from error
        reason = error if type(error) is ValueError else type(error).__name__
        raise InputError(
            f"weights: {path} is damaged or not a state dict saved by torch.save "
            f"({reason}); save it again with torch.save(model.state_dict(), path)"
        ) from error


def _named_tensors(content: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise InputError(
            f"weights: {path} must hold a state dict (name → tensor), plain or under a key; got "
            f"{type(content).__name__}"
        )
    tensors = {}
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            tensors[name] = value
        elif not isinstance(name, str) or ("." in name and not name.endswith("._extra_state")):
            # an entry of a layer, where one such as `epoch` is the trainer's
            raise InputError(
                f"weights: {path} must hold tensors only; entry {name!r} is a "
                f"{type(value).__name__}; save model.state_dict() alone"
            )
    if not tensors:
        raise InputError(
            f"weights: {path} must hold a state dict (name → tensor); got a "
            f"{type(content).__name__} without tensors ({some(map(repr, content)) or 'empty'})"
        )
    for name, value in tensors.items():
        try:
            check_dense(name, value)
        except ValueError as error:
            raise InputError(f"weights: {path} must hold dense tensors, and {error}") from error
    return tensors


def _check_plain(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name in state:
        stem = name.removesuffix("_orig")
        if stem != name and f"{stem}_mask" in state and name not in expected:
            path, _, leaf = stem.rpartition(".")
            raise InputError(
                f"weights: {name!r} shows that the checkpoint is already pruned with "
                f"torch.nn.utils.prune; make it permanent where it was made with "
                f"torch.nn.utils.prune.remove(model.get_submodule({path!r}), {leaf!r}), for every "
                "pruned layer, and save model.state_dict() again"
            )
        if "parametrizations" in name.split(".") and name not in expected:
            raise InputError(
                f"weights: {name!r} shows that the checkpoint is parametrised; make it plain with "
                "torch.nn.utils.parametrize.remove_parametrizations and save model.state_dict() "
                "again"
            )


def _without_wrappers(state: Mapping[str, Tensor], expected: Iterable[str]) -> dict[str, Tensor]:
    """Rename keys that differ from an expected one only by what torch's wrappers add."""
    by_plain = {_plain_name(name): name for name in expected}
    renamed = {by_plain.get(_plain_name(name), name): value for name, value in state.items()}
    return renamed if len(renamed) == len(state) else dict(state)  # never merge two into one


def _plain_name(name: str) -> str:
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while parts and parts[0] in _WRAPPERS:
        parts.pop(0)
    return ".".join(parts)


def _implied(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return entries that a state may leave out: other names of tied tensors, and counters.

    `safetensors.torch.save_model` writes a tied tensor once. Older checkpoints lack
    BatchNorm's `num_batches_tracked`, which a frozen network does not use.
    """
    given: dict[int, str] = {}
    for name, tensor in expected.items():
        if name in state:
            first = given.setdefault(id(tensor), name)
            if sha256_of({"": state[first]}) != sha256_of({"": state[name]}):  # NaN equals NaN here
                raise InputError(
                    f"weights: {first!r} and {name!r} are one tied parameter in this network, but "
                    "the checkpoint holds different values for them; untie them in the factory"
                )
    implied = {}
    for name, tensor in expected.items():
        if name not in state and id(tensor) in given:
            implied[name] = state[given[id(tensor)]]
        elif name not in state and _is_counter(name):
            implied[name] = tensor.detach()
    return implied


def _is_counter(name: str) -> bool:
    """Tell whether a buffer is BatchNorm's number of batches, which older checkpoints lack."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def _check_fits(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    shared = [name for name in expected if name in state]
    shapes = [
        f"{name} {list(state[name].shape)} where the network has {list(expected[name].shape)}"
        for name in shared
        if state[name].shape != expected[name].shape
    ]
    if shapes:
        raise InputError(
            f"weights: shapes must be those of the network; got {some(shapes)}; "
            "check the arguments of the factory"
        )
    # a float checkpoint in an integer buffer would be truncated silently
    kind = attrgetter("is_floating_point", "is_complex")
    kinds = [
        f"{name} is {state[name].dtype} where the network has {expected[name].dtype}"
        for name in shared
        if kind(state[name].dtype) != kind(expected[name].dtype)
    ]
    if kinds:
        raise InputError(
            f"weights: integer, float and complex values cannot stand for each other; "
            f"{some(kinds)}; save the checkpoint before it is quantised, or name the weights "
            "where this is a file of masks"
        )
