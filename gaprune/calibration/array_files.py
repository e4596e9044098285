"""Load arrays from .npz, .npy, .pt, .safetensors and IDX files without executing any code."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from gaprune.errors import GapruneError, InputError
from gaprune.models.zoo.idx import read_idx

INPUT_KEYS = ("x", "inputs", "images")
LABEL_KEYS = ("y", "labels")


class StoredArrays(NamedTuple):
    """Inputs, and labels if the file has any, in the dtype and shape they are stored in."""

    inputs: Tensor
    labels: Tensor | None = None


def load_arrays(path: Path) -> StoredArrays:
    """Load inputs, and labels if the file has any.

    Raises:
        InputError: unknown suffix, damaged or unreadable file, pickled objects, missing keys.
    """
    reader = _READERS[file_format(path)]
    try:
        return reader(path)
    except GapruneError:
        raise
    except Exception as error:  # damaged bytes make decoders raise almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"calibration inputs: {path} cannot be read ({reason}); is it damaged, or "
            "is its suffix wrong?"
        ) from error


def file_format(path: Path) -> str:
    """Return the format of a file by its name, a key of `_READERS`.

    Raises:
        InputError: the suffix is unknown.
    """
    name = path.name.lower()
    if re.search(r"[.-]idx\d?(-\w+)?(\.gz)?$", name):  # as in train-images-idx3-ubyte.gz
        return "idx"
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in _READERS:
        valid = ", ".join(f".{key}" for key in sorted(_READERS))
        raise InputError(
            f"calibration inputs: {path} has the unknown suffix {path.suffix!r}; known are "
            f"{valid}, .idx.gz, and a folder of images"
        )
    return suffix


def _read_npz(path: Path) -> StoredArrays:
    with path.open("rb") as file:  # numpy leaves damaged files open
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError(
                f"calibration inputs: {path} is a single array, not an archive; rename it to .npy"
            )
        inputs, labels = _pick_keys(archive.files, path)
        return StoredArrays(
            _tensor(archive[inputs], path),
            None if labels is None else _tensor(archive[labels], path),
        )


def _read_npy(path: Path) -> StoredArrays:
    with path.open("rb") as file:
        array = np.load(file, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise InputError(
                f"calibration inputs: {path} is an archive, not a single array; rename it to .npz"
            )
        return StoredArrays(_tensor(array, path))


def _read_torch(path: Path) -> StoredArrays:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error below tells what is wrong
            # Stated, because an environment variable can switch the default off.
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch advises to allow code
        raise InputError(
            f"calibration inputs: {path} is damaged, or holds objects other than tensors, which "
            "are not unpickled because that runs code; store the tensors as .safetensors or .npz"
        ) from error
    if isinstance(content, Tensor):
        return StoredArrays(_dense(content, path))
    if isinstance(content, Mapping):
        return _from_mapping(content, path)
    raise InputError(
        f"calibration inputs: {path} must hold a tensor or a dictionary of tensors, "
        f"got {type(content).__name__}"
    )


def _read_safetensors(path: Path) -> StoredArrays:
    return _from_mapping(load_file(path), path)


def _read_idx(path: Path) -> StoredArrays:
    return StoredArrays(_tensor(read_idx(path), path))


_READERS: dict[str, Callable[[Path], StoredArrays]] = {
    "idx": _read_idx,
    "npy": _read_npy,
    "npz": _read_npz,
    "pt": _read_torch,
    "pth": _read_torch,
    "safetensors": _read_safetensors,
}


def _from_mapping(content: Mapping[Any, Any], path: Path) -> StoredArrays:
    inputs, labels = _pick_keys(content, path)
    return StoredArrays(
        _dense(content[inputs], path), None if labels is None else _dense(content[labels], path)
    )


def _pick_keys(keys: Iterable[Any], path: Path) -> tuple[str, str | None]:
    names = [str(key) for key in keys]
    inputs = [key for key in INPUT_KEYS if key in names]
    labels = [key for key in LABEL_KEYS if key in names]
    if len(inputs) != 1 or len(labels) > 1:
        raise InputError(
            f"calibration inputs: {path} must hold inputs under one key of {', '.join(INPUT_KEYS)} "
            f"and may hold labels under one key of {', '.join(LABEL_KEYS)}; "
            f"got {', '.join(names) or 'no keys'}"
        )
    return inputs[0], labels[0] if labels else None


def _dense(content: object, path: Path) -> Tensor:
    if not isinstance(content, Tensor) or content.layout != torch.strided or content.is_quantized:
        actual = getattr(content, "layout", type(content).__name__)
        raise InputError(
            f"calibration inputs: {path} must hold dense, unquantised tensors, got {actual}"
        )
    return content.detach()


def _tensor(array: np.ndarray, path: Path) -> Tensor:
    native = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    try:
        return torch.from_numpy(native)
    except TypeError as error:
        raise InputError(
            f"calibration inputs: {path} must hold numbers, got dtype {array.dtype}"
        ) from error
