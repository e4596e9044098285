"""Read a checkpoint without running code from it, and load it into a network."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from operator import attrgetter
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from gaprune.errors import InputError, about
from gaprune.io.bounded_reading import MAX_DEPTH
from gaprune.io.manifest import check_recorded
from gaprune.io.semi_structured_packing import unpacked
from gaprune.io.sparse import is_sparse, load_sparse
from gaprune.io.tensor_files import check_dense, load_tensors, load_torch, open_tensors

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
# Where training scripts nest the weights inside a larger checkpoint, tried in this order.
NESTED_UNDER = ("state_dict", "model", "model_state_dict")
# Components that torch's wrappers (DataParallel, torch.compile) put in front of parameter names.
_WRAPPERS = ("module", "_orig_mod")
_MAX_LISTED = 5  # names listed in a message


def load_state(path: Path, *, max_bytes: int | None = None) -> dict[str, Tensor]:
    """Return the named tensors of a checkpoint, on the CPU, in the order of the file.

    `.safetensors` files may also be sparse or packed 2:4 ones of `gaprune export`. State dicts of
    `torch.save` (`.pt`, `.pth`, `.bin`) are plain or nested under one of `NESTED_UNDER`; a pickle
    that contains anything but tensors and plain containers is refused before any of it runs.
    `max_bytes` limits the tensors of a sparse file; None is the memory of this machine.

    Raises:
        InputError: the file is missing, empty, a directory, of another suffix, damaged, holds code,
            differs from `export.json` or `result.json` beside it, or maps no names to tensors.
        GapruneError: a compressed sparse file needs Zstandard, which is not installed.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(
            f"weights: {path} must end in one of {', '.join(SUFFIXES)}, got {path.suffix!r}"
        )
    try:
        if path.is_dir():
            raise InputError(f"weights: {path} is a directory; name the file inside it")
        if path.stat().st_size == 0:
            raise InputError(f"weights: {path} is empty (0 bytes); save or fetch it again")
        is_safetensors = suffix == ".safetensors"
        content = _read_safetensors(path, max_bytes) if is_safetensors else _read_torch(path)
        check_recorded(path)  # afterwards: a damaged format has the clearer message
    except OSError as error:
        raise InputError(f"weights: cannot read {path} ({error.strerror or error})") from error
    return _named_tensors(content, path)


def apply_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a state dict into `model`, in place; every name, shape and number type must fit.

    Wrapper prefixes (`module.`, `_orig_mod.`, nested or on a compiled submodule) are removed, and a
    tied parameter may be present under one of its names only. Floating types are converted to those
    of the network.

    Raises:
        InputError: other names, shapes or number types, two values for one tied parameter, or a
            pruned or parametrised network. After an error about names others may be copied already.
    """
    # keep_vars: the parameters themselves, so that tied ones are the same object
    expected = {k: v for k, v in model.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}
    _check_plain(state, expected)
    state = _without_wrappers(state, expected)
    state |= _implied(state, expected)
    _check_fits(state, expected)  # before anything is copied
    try:
        # torch compares the names after the network's own renaming hooks have run
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise InputError(f"weights: do not fit {type(model).__name__}: {error}") from error
    if missing or unexpected:
        parts = [
            f"{label} {len(names)} ({_some(names)})"
            for label, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise InputError(
            f"weights: the names must be those of {type(model).__name__}; {', '.join(parts)}; "
            "check that the checkpoint belongs to this network"
        )


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
    nested: object = content
    # descend until no key of `NESTED_UNDER` holds a mapping: {"model": {"state_dict": …}}
    for _ in range(MAX_DEPTH):  # a pickled dictionary may contain itself
        if not isinstance(nested, Mapping):
            break
        content = nested
        nested = next(
            (content[k] for k in NESTED_UNDER if isinstance(content.get(k), Mapping)), None
        )
    if not isinstance(content, Mapping) or not content:
        got = f"an empty {type(content).__name__}" if isinstance(content, Mapping) else ""
        raise InputError(
            f"weights: {path} must hold a state dict (name → tensor), plain or under "
            f"{', '.join(map(repr, NESTED_UNDER))}; got {got or type(content).__name__}"
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(
                f"weights: {path} must hold tensors only; entry {name!r} is a "
                f"{type(value).__name__}; save model.state_dict() alone"
            )
        try:
            check_dense(name, value)
        except ValueError as error:
            raise InputError(f"weights: {path} must hold dense tensors, and {error}") from error
    return dict(content)


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
        elif name not in state and name.split(".")[-1] == "num_batches_tracked":
            implied[name] = tensor.detach()
    return implied


def _check_fits(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    shared = [name for name in expected if name in state]
    shapes = [
        f"{name} {list(state[name].shape)} where the network has {list(expected[name].shape)}"
        for name in shared
        if state[name].shape != expected[name].shape
    ]
    if shapes:
        raise InputError(
            f"weights: shapes must be those of the network; got {_some(shapes)}; "
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
            f"{_some(kinds)}; save the checkpoint before it is quantised, or name the weights "
            "where this is a file of masks"
        )


def _some(items: Iterable[str]) -> str:
    listed = list(items)
    more = f" and {len(listed) - _MAX_LISTED} more" if len(listed) > _MAX_LISTED else ""
    return ", ".join(listed[:_MAX_LISTED]) + more
