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
from gaprune.io.bounded_reading import check_expanded, open_gzip, read_exactly

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
    try:
        with open_gzip(path) as file:
            magic = file.read(4)
            axes, dtype = magic[-1:] or b"\0", _DTYPES.get(magic[2] if len(magic) == 4 else 0)
            if dtype is not None and magic[:2] == b"\0\0":
                shape = struct.unpack(f">{axes[0]}I", read_exactly(file, 4 * axes[0], more=True))
                size = np.dtype(dtype).itemsize * math.prod(shape)
                check_expanded(size, path.stat().st_size)
                data = read_exactly(file, size)
                return np.frombuffer(data, dtype).reshape(shape).astype(dtype.replace(">", "="))
    except (EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise InputError(
            f"IDX file {path}: it is damaged ({error}); fetch the file again"
        ) from error
    raise InputError(
        f"IDX file {path}: must start with 00 00, a type code and the number of axes; "
        f"got {magic.hex(' ') or 'nothing'}"
    )
