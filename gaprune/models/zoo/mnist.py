"""The four bundled MNIST files (see `data/LICENSE.md`), and their format IDX.

IDX: a magic number, the sizes, the raw big-endian values.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaprune.errors import InputError

FOLDER = Path(__file__).parent / "data"
TRAIN_IMAGES = FOLDER / "train-images-idx3-ubyte.gz"
TRAIN_LABELS = FOLDER / "train-labels-idx1-ubyte.gz"
TEST_IMAGES = FOLDER / "t10k-images-idx3-ubyte.gz"
TEST_LABELS = FOLDER / "t10k-labels-idx1-ubyte.gz"
_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


class LabelledImages(NamedTuple):
    """Images `[N, 1, 28, 28]`, float32 in [0, 1], and their labels `[N]`, int64."""

    images: Tensor
    labels: Tensor


def _load(images: Path, labels: Path) -> LabelledImages:
    pixels = torch.from_numpy(read_idx(images)).float().div_(255).unsqueeze(1)
    return LabelledImages(pixels, torch.from_numpy(read_idx(labels)).long())


def train_set() -> LabelledImages:
    """The 60,000 training images."""
    return _load(TRAIN_IMAGES, TRAIN_LABELS)


def test_set() -> LabelledImages:
    """The 10,000 test images."""
    return _load(TEST_IMAGES, TEST_LABELS)


def read_idx(path: Path) -> NDArray[np.generic]:
    """Return the array that an IDX file holds (`.gz` is unpacked), in native byte order.

    Raises:
        InputError: the file is not IDX, is truncated, or holds more than it declares.
    """
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":  # gzip, whatever the name of the file
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(
                f"IDX file {path}: the gzip data is damaged ({error}); fetch the file again"
            ) from error
    if len(raw) < 4 or raw[:2] != b"\x00\x00" or raw[2] not in _DTYPES:
        raise InputError(
            f"IDX file {path}: must start with 00 00, a type code and the number of axes; "
            f"got {raw[:4].hex(' ') or 'nothing'}"
        )
    axes, start = raw[3], 4 + 4 * raw[3]
    if len(raw) < start:
        raise InputError(f"IDX file {path}: cut off inside its header; fetch the file again")
    shape = struct.unpack(f">{axes}I", raw[4:start])
    dtype = np.dtype(_DTYPES[raw[2]])
    expected = start + dtype.itemsize * math.prod(shape)
    if len(raw) != expected:
        raise InputError(
            f"IDX file {path}: declares shape {shape}, {expected} bytes in all; "
            f"got {len(raw)} bytes"
        )
    return np.frombuffer(raw, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))
