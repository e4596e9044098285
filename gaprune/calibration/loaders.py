"""From a file of arrays to tensors as stored; nothing in a file is ever executed."""

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


class Stored(NamedTuple):
    """What a file holds, before it is checked against the network: inputs, labels if any."""

    inputs: Tensor
    labels: Tensor | None = None


def load_arrays(path: Path) -> Stored:
    """Read inputs, and labels if the file has them, in the dtype and shape they are stored in.

    Raises:
        InputError: unknown suffix, damaged or unreadable file, pickled objects, missing keys.
    """
    reader = _READERS[file_format(path)]
    try:
        return reader(path)
    except GapruneError:
        raise
    except Exception as error:  # decoders of foreign bytes raise almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"calibration inputs: {path} cannot be read ({reason}); is it damaged, or of another format than "
            "its suffix says?"
        ) from error


def file_format(path: Path) -> str:
    """Return a key of the readers for the file's name.

    Raises:
        InputError: the suffix is unknown.
    """
    name = path.name.lower()
    if re.search(r"[.-]idx\d?(-\w+)?(\.gz)?$", name):  # also the names MNIST came with
        return "idx"
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in _READERS:
        valid = ", ".join(f".{key}" for key in sorted(_READERS))
        raise InputError(
            f"calibration inputs: {path} has the unknown suffix {path.suffix!r}; known are {valid}, "
            ".idx.gz, and a folder of pictures"
        )
    return suffix


def _read_npz(path: Path) -> Stored:
    with path.open("rb") as file:  # numpy itself leaves a damaged file open
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError(
                f"calibration inputs: {path} is no .npz archive but a single array; name it .npy"
            )
        inputs, labels = _pick_keys(archive.files, path)
        return Stored(
            _tensor(archive[inputs], path),
            None if labels is None else _tensor(archive[labels], path),
        )


def _read_npy(path: Path) -> Stored:
    with path.open("rb") as file:
        array = np.load(file, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise InputError(
                f"calibration inputs: {path} is no single array but an archive; name it .npz"
            )
        return Stored(_tensor(array, path))


def _read_torch(path: Path) -> Stored:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong with the file is told once, below
            # weights_only is stated because an environment variable can switch the default off
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own message advises to allow everything
        raise InputError(
            f"calibration inputs: {path} is damaged or holds other objects than tensors, which are never "
            "unpickled since that runs code; store the tensors as .safetensors or .npz"
        ) from error
    if isinstance(content, Tensor):
        return Stored(_dense(content, path))
    if isinstance(content, Mapping):
        return _from_mapping(content, path)
    raise InputError(
        f"calibration inputs: {path} must hold a tensor or a dictionary of them, got {type(content).__name__}"
    )


def _read_safetensors(path: Path) -> Stored:
    return _from_mapping(load_file(path), path)


def _read_idx(path: Path) -> Stored:
    return Stored(_tensor(read_idx(path), path))


_READERS: dict[str, Callable[[Path], Stored]] = {
    "idx": _read_idx,
    "npy": _read_npy,
    "npz": _read_npz,
    "pt": _read_torch,
    "pth": _read_torch,
    "safetensors": _read_safetensors,
}


def _from_mapping(content: Mapping[Any, Any], path: Path) -> Stored:
    inputs, labels = _pick_keys(content, path)
    return Stored(
        _dense(content[inputs], path), None if labels is None else _dense(content[labels], path)
    )


def _pick_keys(keys: Iterable[Any], path: Path) -> tuple[str, str | None]:
    held = [str(key) for key in keys]
    inputs = [key for key in INPUT_KEYS if key in held]
    labels = [key for key in LABEL_KEYS if key in held]
    if len(inputs) != 1 or len(labels) > 1:
        raise InputError(
            f"calibration inputs: {path} must hold its inputs under one of {', '.join(INPUT_KEYS)} and may "
            f"hold labels under one of {', '.join(LABEL_KEYS)}; got {', '.join(held) or 'no keys'}"
        )
    return inputs[0], labels[0] if labels else None


def _dense(content: object, path: Path) -> Tensor:
    if not isinstance(content, Tensor) or content.layout != torch.strided or content.is_quantized:
        came = getattr(content, "layout", type(content).__name__)
        raise InputError(
            f"calibration inputs: {path} must hold dense, unquantised tensors, got {came}"
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
