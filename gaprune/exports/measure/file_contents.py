"""Read a file of weights of any kind, and find the dense network that it belongs to."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from gaprune.errors import GapruneError, InputError, about
from gaprune.exports.compact import is_compact, load_program, removed_channels
from gaprune.exports.pruned_network import find_target
from gaprune.exports.writers import MASK_SUFFIX, MODEL, ORIG_SUFFIX, without_prune
from gaprune.io.manifest import MANIFEST, SCHEMA, check_recorded, read_manifest
from gaprune.io.mask_file import PACKED
from gaprune.io.run_files import CONFIG, RECORD, read_config, read_record, read_run_config
from gaprune.io.semi_structured_packing import META, VALUES
from gaprune.io.serialization import from_metadata
from gaprune.io.sparse import is_sparse, load_sparse
from gaprune.io.tensor_files import open_tensors
from gaprune.io.trusted_code import check_program
from gaprune.io.weights import SUFFIXES, apply_state, load_state
from gaprune.models.channel_removal import remove_channels
from gaprune.models.onnx import EXTRA
from gaprune.models.sources.optional_packages import import_extra
from gaprune.models.subnormal_numbers import is_subnormal
from gaprune.models.target import Target, load_target
from gaprune.runs.directory import load_masks
from gaprune.runs.live_networks import live_network

DENSE, SPARSE, MASKS, PRUNE, ONNX = "dense", "sparse", "masks", "prune", "onnx"
PROGRAM, TWO_FOUR = "program", "semi-structured"
_KINDS_BY_SUFFIX = {".onnx": ONNX, ".pt2": PROGRAM}
_NAME_PAIRS = {PRUNE: (MASK_SUFFIX, ORIG_SUFFIX), TWO_FOUR: (VALUES, META)}  # they tell a kind
_REMEDY = ", or name it with --target"
_MASK_FORMATS = ("gaprune mask", PACKED)


@dataclass(frozen=True, eq=False)
class FileContents:
    """The content of a file of weights."""

    path: Path  # the file
    kind: str  # `dense`, `sparse`, `masks`, `prune`, `semi-structured`, `onnx` or `program`
    parameters: int  # floating-point numbers in it; of masks, the weights that they cover
    nonzeros: int  # those that aren't 0; of masks, the weights that are kept
    subnormals: int  # those too small for the usual format, which slow processors down
    # the state dict; None for masks, ONNX and programs
    state: Mapping[str, Tensor] | None = field(default=None, repr=False)
    # the masks; None for other kinds
    masks: Mapping[str, Tensor] | None = field(default=None, repr=False)
    # layer → its output channels that the network no longer has; empty for other kinds
    removed: Mapping[str, Sequence[int]] = field(default_factory=dict, repr=False)
    # the network of a program that was loaded, else None
    network: nn.Module | None = field(default=None, repr=False)

    @torch.no_grad()
    def load_into(self, dense: Target) -> nn.Module | None:
        """Return a copy of the dense network with these weights, or a program; None for ONNX.

        A smaller network is built from the dense one.

        Raises:
            InputError: names, shapes or channels don't fit.
        """
        if self.network is not None:
            return self.network
        if self.masks is not None:
            for name, mask in self.masks.items():
                if name not in dense.weights or dense.weights[name].shape != mask.shape:
                    raise InputError(
                        f"{self.path}: its mask {name!r} fits no weight of {dense.name}"
                    )
            return dense.masked_copy(self.masks)
        if self.state is None:
            return None
        try:
            if self.removed:
                model = remove_channels(dense.model, dense.example(), self.removed)
            else:
                model = copy.deepcopy(dense.model)
            apply_state(model, self.state)
        except InputError as error:
            raise about(str(self.path), error) from error
        return model


def read_contents(path: Path, *, trust_code: bool = False) -> FileContents:
    """Read a file of weights.

    Args:
        path: the file.
        trust_code: whether a program that no `compact` export wrote is loaded.

    Raises:
        InputError: no such file, damaged, of an unknown kind, or a program that may not run.
        GapruneError: an optional package is missing.
    """
    kind = _kind(path)
    check_recorded(path)
    if kind == PROGRAM and not is_compact(path):
        check_program(path, trust_code=trust_code)
        network = load_program(path)
        state = network.state_dict().values()
        counts = _counts(value for value in state if value.is_floating_point())
        return FileContents(path, kind, *counts, network=network)
    return _READERS[kind](path, kind)


def _kind(path: Path) -> str:
    if path.is_dir():
        raise InputError(f"file: {path} is a folder; name the file inside it")
    if not path.is_file():
        raise InputError(f"file: there is no file {path}; name one that gaprune export writes")
    suffix = path.suffix.lower()
    if suffix not in (*SUFFIXES, *_KINDS_BY_SUFFIX):
        known = ", ".join((*SUFFIXES, *_KINDS_BY_SUFFIX))
        raise InputError(f"file: {path} must end in one of {known}, got {path.suffix!r}")
    if suffix != ".safetensors":
        return _KINDS_BY_SUFFIX.get(suffix, DENSE)
    try:
        with open_tensors(path, "numpy") as file:
            sparse = is_sparse(file)
            stated = from_metadata(file.metadata()).get("format")
            names = set(file.keys())
    except (SafetensorError, ValueError, TypeError) as error:
        raise InputError(
            f"file: {path} is damaged or not a safetensors file ({error}); fetch it again"
        ) from error
    if sparse or stated in _MASK_FORMATS:
        return SPARSE if sparse else MASKS
    for kind, (suffix, other) in _NAME_PAIRS.items():
        stems = (name.removesuffix(suffix) for name in names if name.endswith(suffix))
        if any(stem + other in names for stem in stems):
            return kind
    return DENSE


def _counts(tensors: Iterable[Tensor]) -> tuple[int, int, int]:
    """Return how many elements tensors have, how many aren't 0, and how many are subnormal."""
    listed = list(tensors)
    subnormals = [is_subnormal(tensor) for tensor in listed]
    nonzeros = sum(int(((t != 0) | s).sum()) for t, s in zip(listed, subnormals, strict=True))
    return sum(t.numel() for t in listed), nonzeros, sum(int(s.sum()) for s in subnormals)


def _from_state(
    path: Path,
    kind: str,
    state: Mapping[str, Tensor],
    removed: Mapping[str, Sequence[int]] | None = None,
) -> FileContents:
    counts = _counts(value for value in state.values() if value.is_floating_point())
    return FileContents(path, kind, *counts, state=state, removed=removed or {})


def _read_masks(path: Path, kind: str) -> FileContents:
    masks = load_masks(path)
    return FileContents(path, kind, *_counts(masks.values()), masks=masks)


def _read_dense(path: Path, kind: str) -> FileContents:
    return _from_state(path, kind, load_state(path), removed_channels(path))


def _read_compact(path: Path, kind: str) -> FileContents:
    """Read the state dict beside a program that gaprune wrote; the program is not loaded."""
    file = path.with_name(MODEL)
    removed = removed_channels(file)
    if not removed:
        raise InputError(
            f"file: {file} does not list the channels that {path.name} lacks; export the run again"
        )
    return _from_state(path, kind, load_state(file), removed)


def _read_onnx(path: Path, kind: str) -> FileContents:
    onnx = import_extra("onnx", EXTRA, "onnx")
    numpy_helper = import_extra("onnx.numpy_helper", EXTRA, "onnx")
    try:
        arrays = [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    except (GapruneError, OSError):
        raise
    except Exception as error:  # compiled code raises any type on a damaged file
        raise InputError(
            f"file: {path} is damaged or not an ONNX file ({type(error).__name__}); export it again"
        ) from error
    numbers = (array for array in arrays if np.issubdtype(array.dtype, np.floating))
    return FileContents(path, kind, *_counts(torch.tensor(array) for array in numbers))


_READERS: dict[str, Callable[[Path, str], FileContents]] = {
    DENSE: _read_dense,
    TWO_FOUR: lambda path, kind: _from_state(path, kind, load_state(path)),
    SPARSE: lambda path, kind: _from_state(path, kind, load_sparse(path)),
    PRUNE: lambda path, kind: _from_state(path, kind, without_prune(load_state(path))),
    MASKS: _read_masks,
    ONNX: _read_onnx,
    PROGRAM: _read_compact,
}


def find_dense(
    path: Path, stated: str | Target | nn.Module | None, *, trust_code: bool = False
) -> Target | None:
    """Return the dense network of a file; None where nothing names it.

    `stated` is a target's name, a run directory, the target itself, or a network whose inputs an
    export or a run in the folder of the file describes; None looks there for the network too.
    `trust_code` tells whether a factory that a run or export names may run in any case.

    Raises:
        InputError: what is named can't be loaded or may not run, or its weights have changed since
            pruning.
    """
    if isinstance(stated, Target):
        return stated
    if isinstance(stated, (str, Path)):
        config_path = Path(stated).expanduser() / CONFIG
        if config_path.is_file():
            named = read_config(config_path)
            return find_target(named, config_path, trust_code=trust_code, remedy=_REMEDY)
        return load_target(stated)
    config, source, sha256 = _config_beside(path.resolve().parent)
    if "target" not in config and stated is None and live_network(source.parent) is None:
        return None
    target = find_target(config, source, model=stated, trust_code=trust_code, remedy=_REMEDY)
    if sha256 not in (None, target.weights_sha256):
        raise InputError(
            f"target: the weights of {target.name} are no longer those that {path} was pruned from "
            "(SHA-256); name the dense network with --target"
        )
    return target


def _config_beside(folder: Path) -> tuple[Mapping[str, Any], Path, str | None]:
    """Return the settings of the export or run in a folder, their file, and the dense hash."""
    manifest = read_manifest(folder)
    if manifest is not None and manifest.get("schema") != SCHEMA:
        raise InputError(
            f"file: {folder / MANIFEST} is of gaprune up to 0.2; export the run again, or name the "
            "dense network with --target"
        )
    if manifest is not None and isinstance(manifest.get("config"), dict):
        return manifest["config"], folder / MANIFEST, manifest.get("weights_sha256")
    if not (folder / CONFIG).is_file():
        return {}, folder / CONFIG, None
    if not (folder / RECORD).is_file():  # a run that hasn't ended
        return read_config(folder / CONFIG), folder / CONFIG, None
    record = read_record(folder)
    return read_run_config(folder, record), folder / CONFIG, record["weights_sha256"]
