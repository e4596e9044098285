"""The four bundled MNIST files (see `data/LICENSE.md`), as tensors."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gaprune.models.zoo.idx import read_idx

FOLDER = Path(__file__).parent / "data"
TRAIN_IMAGES = FOLDER / "train-images-idx3-ubyte.gz"
TRAIN_LABELS = FOLDER / "train-labels-idx1-ubyte.gz"
TEST_IMAGES = FOLDER / "t10k-images-idx3-ubyte.gz"
TEST_LABELS = FOLDER / "t10k-labels-idx1-ubyte.gz"


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
