"""What a file of weights holds, told by its content: its kind, its parameters, its zeros."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from gaprune.errors import GapruneError, InputError
from gaprune.export.compact import load_program
from gaprune.export.state_dicts import MASK, ORIGINAL, without_prune
from gaprune.io.manifest import check_exported
from gaprune.io.mask_file import PACKED
from gaprune.io.semi_structured_packing import META, VALUES
from gaprune.io.serialization import from_stamp
from gaprune.io.sparse import is_sparse, load_sparse
from gaprune.io.weights import SUFFIXES, load_state
from gaprune.models.onnx import EXTRA
from gaprune.models.sources.optional_packages import import_extra
from gaprune.runs.directory import load_masks

DENSE, SPARSE, MASKS, PRUNE, ONNX = "dense", "sparse", "masks", "prune", "onnx"
PROGRAM, TWO_FOUR = "program", "semi-structured"
_SUFFIXES = {".onnx": ONNX, ".pt2": PROGRAM}
_PAIRS = {PRUNE: (MASK, ORIGINAL), TWO_FOUR: (VALUES, META)}  # of names that tell a kind
_MASKS = ("gaprune mask", PACKED)


@dataclass(frozen=True, eq=False)
class FileContents:
    """What a file holds.

    Attributes:
        path: the file.
        kind: `dense`, `sparse`, `masks`, `prune`, `semi-structured`, `onnx` or `program`.
        parameters: numbers of a floating type in it; of masks, the weights they speak of.
        nonzeros: those that are not 0; of masks, the weights that stay.
        state: the state dict it stands for; None of masks, ONNX and programs.
        masks: of masks, else None.
        network: of a program of `torch.export`, else None.
    """

    path: Path
    kind: str
    parameters: int
    nonzeros: int
    state: Mapping[str, Tensor] | None = field(default=None, repr=False)
    masks: Mapping[str, Tensor] | None = field(default=None, repr=False)
    network: nn.Module | None = field(default=None, repr=False)


def read_file(path: Path) -> FileContents:
    """Read a file of weights.

    Raises:
        InputError: no such file, damaged, or none of the kinds that are known.
        GapruneError: an optional package is missing.
    """
    kind = _kind(path)
    check_exported(path)
    return _READERS[kind](path, kind)


def _kind(path: Path) -> str:
    if path.is_dir():
        raise InputError(f"file: {path} is a folder; name the file inside it")
    if not path.is_file():
        raise InputError(f"file: there is no file {path}; name one that gaprune export writes")
    suffix = path.suffix.lower()
    if suffix not in (*SUFFIXES, *_SUFFIXES):
        known = ", ".join((*SUFFIXES, *_SUFFIXES))
        raise InputError(f"file: {path} must end in one of {known}, got {path.suffix!r}")
    if suffix != ".safetensors":
        return _SUFFIXES.get(suffix, DENSE)  # or what `load_state` refuses
    try:
        with safe_open(path, "numpy") as file:
            sparse = is_sparse(file)
            stated = from_stamp(file.metadata()).get("format")
            names = set(file.keys())
    except (SafetensorError, ValueError, TypeError) as error:
        raise InputError(
            f"file: {path} is damaged or not a safetensors file ({error}); fetch it again"
        ) from error
    return SPARSE if sparse else MASKS if stated in _MASKS else _kind_of(names)


def _kind_of(names: set[str]) -> str:
    for kind, (one, other) in _PAIRS.items():
        stems = (name.removesuffix(one) for name in names if name.endswith(one))
        if any(stem + other in names for stem in stems):
            return kind
    return DENSE


def _read_dense(path: Path, kind: str) -> FileContents:
    return _of_state(path, kind, load_state(path))


def _read_sparse(path: Path, kind: str) -> FileContents:
    return _of_state(path, kind, load_sparse(path))


def _read_prune(path: Path, kind: str) -> FileContents:
    return _of_state(path, kind, without_prune(load_state(path)))


def _of_state(path: Path, kind: str, state: Mapping[str, Tensor]) -> FileContents:
    numbers = [value for value in state.values() if value.is_floating_point()]
    total = sum(value.numel() for value in numbers)
    return FileContents(
        path, kind, total, sum(int(one.count_nonzero()) for one in numbers), state=state
    )


def _read_masks(path: Path, kind: str) -> FileContents:
    masks = load_masks(path)
    total = sum(mask.numel() for mask in masks.values())
    kept = sum(int(mask.count_nonzero()) for mask in masks.values())
    return FileContents(path, kind, total, kept, masks=masks)


def _read_onnx(path: Path, kind: str) -> FileContents:
    onnx = import_extra("onnx", EXTRA, "onnx")
    numpy_helper = import_extra("onnx.numpy_helper", EXTRA, "onnx")
    try:
        graph = onnx.load(path).graph
        arrays = [numpy_helper.to_array(one) for one in graph.initializer]
    except (GapruneError, OSError):
        raise
    except Exception as error:  # of compiled code: damaged files raise any type
        raise InputError(
            f"file: {path} is damaged or not an ONNX file ({type(error).__name__}); export it again"
        ) from error
    numbers = [array for array in arrays if np.issubdtype(array.dtype, np.floating)]
    total = sum(array.size for array in numbers)
    return FileContents(path, kind, total, sum(int(np.count_nonzero(one)) for one in numbers))


def _read_program(path: Path, kind: str) -> FileContents:
    network = load_program(path)
    numbers = [one for one in network.state_dict().values() if one.is_floating_point()]
    total = sum(one.numel() for one in numbers)
    nonzeros = sum(int(one.count_nonzero()) for one in numbers)
    return FileContents(path, kind, total, nonzeros, network=network)


_READERS: dict[str, Callable[[Path, str], FileContents]] = {
    DENSE: _read_dense,
    TWO_FOUR: _read_dense,
    SPARSE: _read_sparse,
    MASKS: _read_masks,
    PRUNE: _read_prune,
    ONNX: _read_onnx,
    PROGRAM: _read_program,
}
