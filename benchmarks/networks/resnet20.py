"""ResNets for CIFAR-10 (He et al. 2016), with weights and test images from the data folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.networks.real_network import RealNetwork, data_path
from benchmarks.networks.scoring import accuracy, outputs_of, same_class
from gaprune.errors import InputError
from gaprune.io.weights import apply_state, load_state
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, target_from_module

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm around a shortcut (He et al. 2016, section 4.2).

    The shortcut is option A: subsampling and zero-padded channels where sizes change.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.padding = (outputs - inputs) // 2

    def forward(self, features: Tensor) -> Tensor:
        """Map `[N, inputs, H, W]` to `[N, outputs, H/stride, W/stride]`."""
        residual = functional.relu(self.bn1(self.conv1(features)))
        residual = self.bn2(self.conv2(residual))
        shortcut = features[:, :, :: self.stride, :: self.stride]
        if self.padding:
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(residual + shortcut)


class ResNet20(nn.Module):
    """A 3×3 stem, three stages of `blocks` with 16, 32 and 64 channels, pooling, linear.

    Input `[N, 3, 32, 32]`, normalised; output logits `[N, 10]`.
    """

    blocks = 3

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16)
        self.layer2 = self._stage(16, 32)
        self.layer3 = self._stage(32, 64)
        self.linear = nn.Linear(64, 10)

    def _stage(self, inputs: int, outputs: int) -> nn.Sequential:
        first = BasicBlock(inputs, outputs, 1 if inputs == outputs else 2)
        others = (BasicBlock(outputs, outputs, 1) for _ in range(self.blocks - 1))
        return nn.Sequential(first, *others)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        features = functional.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        logits: Tensor = self.linear(features.mean((2, 3)))
        return logits


class ResNet56(ResNet20):
    """The same network with nine blocks a stage."""

    blocks = 9


def open_resnet20(data: Path | None) -> RealNetwork:
    """Return ResNet-20; see `_open`."""
    return _open("resnet20", ResNet20, data)


def open_resnet56(data: Path | None) -> RealNetwork:
    """Return ResNet-56; see `_open`."""
    return _open("resnet56", ResNet56, data)


def _open(name: str, architecture: type[ResNet20], data: Path | None) -> RealNetwork:
    """Return a network with `cifar10/NAME.safetensors` and `cifar10/test2000.npz` of `data`.

    The file of images holds `images` (uint8 `[N, 32, 32, 3]`) and `labels` `[N]`.

    Raises:
        InputError: a file is missing or malformed.
    """
    weights = data_path(data, "cifar10", f"{name}.safetensors")
    images, labels = _read(data_path(data, "cifar10", "test2000.npz"))

    def load() -> Target:
        model = architecture()
        apply_state(model, load_state(weights))
        options = InputOptions(shape=(3, 32, 32), kind="image", mean=MEAN, std=STD)
        return target_from_module(model, inputs=options, name=name)

    return RealNetwork(
        name=name,
        load=load,
        outputs=lambda model: outputs_of(model, images),
        grade=lambda outputs: accuracy(outputs, labels),
        agreement=same_class,
        test_count=len(labels),
        measure="top-1 on CIFAR-10 test images",
    )


def _read(path: Path) -> tuple[Tensor, Tensor]:
    with np.load(path, allow_pickle=False) as file:
        if not {"images", "labels"} <= set(file):
            raise InputError(f"data: {path} must hold images and labels, got {', '.join(file)}")
        pixels, labels = torch.from_numpy(file["images"]), torch.from_numpy(file["labels"])
    if pixels.dtype != torch.uint8 or pixels.shape[1:] != (32, 32, 3):
        raise InputError(f"data: {path} must hold uint8 images [N, 32, 32, 3], got {pixels.shape}")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std, labels.long()
