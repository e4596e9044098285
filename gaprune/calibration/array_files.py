"""Load arrays from .npz, .npy, .pt, .safetensors and IDX files without executing any code."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gaprune.errors import GapruneError, InputError
from gaprune.io.tensor_files import (
    check_dense,
    is_npy,
    load_tensors,
    load_torch,
    read_npy,
    read_npz,
)
from gaprune.models.zoo.mnist import read_idx

INPUT_KEYS = ("x", "inputs", "images")
LABEL_KEYS = ("y", "labels")


class StoredArrays(NamedTuple):
    """Inputs, and labels if the file has any, in the dtype and shape they are stored in."""

    inputs: Tensor
    labels: Tensor | None = None


def load_arrays(path: Path) -> StoredArrays:
    """Load a file; an `InputError` says what is wrong with its suffix, bytes or keys."""
    reader = _READERS[file_format(path)]
    try:
        return reader(path)
    except GapruneError:
        raise
    except Exception as error:  # damaged bytes make decoders raise almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"calibration inputs: {path} cannot be read ({reason}); is it damaged, or is its "
            "suffix wrong?"
        ) from error


def file_format(path: Path) -> str:
    """Return the format of a file by its name, a key of `_READERS`, or raise an `InputError`."""
    name = path.name.lower()
    if re.search(r"[.-]idx\d?(-\w+)?(\.gz)?$", name):  # as in train-images-idx3-ubyte.gz
        return "idx"
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in _READERS:
        valid = ", ".join(f".{key}" for key in sorted(_READERS))
        raise InputError(
            f"calibration inputs: {path} has the unknown suffix {path.suffix!r}; valid "
            f"are {valid}, .idx.gz"
        )
    return suffix


def _read_numpy(path: Path) -> StoredArrays:
    stated = path.suffix.lower()
    suffix = ".npz" if zipfile.is_zipfile(path) else ".npy" if is_npy(path) else stated
    if stated != suffix:
        kind = "an archive" if suffix == ".npz" else "a single array"
        raise InputError(f"calibration inputs: {path} is {kind}; rename it to {suffix}")
    if suffix == ".npz":
        return _arrays_in(read_npz(path, (*INPUT_KEYS, *LABEL_KEYS)), path)
    return StoredArrays(_tensor(read_npy(path), path))


def _read_torch(path: Path) -> StoredArrays:
    try:
        content = load_torch(path)
    except pickle.UnpicklingError as error:  # torch's own message advises to allow code
        raise InputError(
            f"calibration inputs: {path} is damaged, or holds objects other than tensors, which "
            "are not unpickled because that runs code; store the tensors as .safetensors or .npz"
        ) from error
    if isinstance(content, Mapping):
        return _arrays_in(content, path)
    return StoredArrays(_tensor(content, path))


_READERS: dict[str, Callable[[Path], StoredArrays]] = {
    "idx": lambda path: StoredArrays(_tensor(read_idx(path), path)),
    "npy": _read_numpy,
    "npz": _read_numpy,
    "pt": _read_torch,
    "pth": _read_torch,
    "safetensors": lambda path: _arrays_in(load_tensors(path), path),
}


def _arrays_in(content: Mapping[Any, Any], path: Path) -> StoredArrays:
    """Return the inputs of an archive or dictionary, and its labels if there are any."""
    names = [str(key) for key in content]
    inputs = [key for key in INPUT_KEYS if key in names]
    labels = [key for key in LABEL_KEYS if key in names]
    if len(inputs) != 1 or len(labels) > 1:
        raise InputError(
            f"calibration inputs: {path} must hold inputs under one key of {', '.join(INPUT_KEYS)} "
            f"and may hold labels under one key of {', '.join(LABEL_KEYS)}; "
            f"got {', '.join(names) or 'no keys'}"
        )
    stored_labels = _tensor(content[labels[0]], path) if labels else None
    return StoredArrays(_tensor(content[inputs[0]], path), stored_labels)


def _tensor(content: object, path: Path) -> Tensor:
    """Return an array as a tensor in native byte order, or a dense tensor itself."""
    if isinstance(content, np.ndarray):
        native = np.array(content, dtype=content.dtype.newbyteorder("="), order="C")
        try:
            return torch.from_numpy(native)
        except TypeError as error:
            raise InputError(
                f"calibration inputs: {path} must hold numbers, got dtype {content.dtype}"
            ) from error
    if not isinstance(content, Tensor):
        actual = type(content).__name__
        raise InputError(f"calibration inputs: {path} must hold dense tensors, got {actual}")
    try:
        check_dense("its tensor", content)
    except ValueError as error:
        raise InputError(
            f"calibration inputs: {path} must hold dense tensors, and {error}"
        ) from error
    return content.detach()
