"""The reference networks, layer by layer. Their weights are in `checkpoints/`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu


class MnistMlp(nn.Module):
    """784-250-100-10 with biases and ReLU.

    222,360 parameters, of which 222,000 weights are prunable (the 360 biases are not).
    Input `[N, 1, 28, 28]` or `[N, 784]`, float32 in [0, 1]; output logits `[N, 10]`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 250)
        self.fc2 = nn.Linear(250, 100)
        self.fc3 = nn.Linear(100, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        hidden = relu(self.fc1(images.flatten(1)))
        logits: Tensor = self.fc3(relu(self.fc2(hidden)))
        return logits


class MnistCnn(nn.Module):
    """Two 3×3 convolutions (32, 64), 2×2 pooling, dropout, 9216-128-10, no biases.

    1,199,648 weights, all prunable. Input `[N, 1, 28, 28]` in [0, 1]; output logits `[N, 10]`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, bias=False)
        self.conv2 = nn.Conv2d(32, 64, 3, bias=False)
        self.dropout1 = nn.Dropout(0.25)
        self.fc1 = nn.Linear(9216, 128, bias=False)
        self.dropout2 = nn.Dropout(0.5)
        self.fc2 = nn.Linear(128, 10, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        hidden = relu(self.conv2(relu(self.conv1(images))))
        hidden = self.dropout1(max_pool2d(hidden, 2)).flatten(1)
        logits: Tensor = self.fc2(self.dropout2(relu(self.fc1(hidden))))
        return logits


class LeNet(nn.Module):
    """6 and 16 convolutions of 5×5, then 120-84-10 (LeCun et al. 1998, with ReLU and max pooling).

    Input `[N, 1, 28, 28]` in [0, 1], padded to 32×32 by the first layer; output logits `[N, 10]`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        hidden = max_pool2d(relu(self.conv1(images)), 2)
        hidden = max_pool2d(relu(self.conv2(hidden)), 2).flatten(1)
        logits: Tensor = self.fc3(relu(self.fc2(relu(self.fc1(hidden)))))
        return logits


class FourLayer(nn.Module):
    """Convolutions of 16 7×7 and 32 5×5 filters at stride 2, 2×2 max pooling, 128-256-10, biases.

    49,226 parameters, of which 48,912 weights are prunable (the 314 biases are not).
    Input `[N, 1, 28, 28]` in [0, 1]; output logits `[N, 10]`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 7, 2)
        self.conv2 = nn.Conv2d(16, 32, 5, 2)
        self.fc1 = nn.Linear(128, 256)
        self.fc2 = nn.Linear(256, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        hidden = relu(self.conv1(images))
        hidden = max_pool2d(relu(self.conv2(hidden)), 2).flatten(1)
        logits: Tensor = self.fc2(relu(self.fc1(hidden)))
        return logits


class _DepthwiseBlock(nn.Sequential):
    """3×3 depthwise, 1×1 pointwise, each with BatchNorm and ReLU (Howard et al. 2017, fig. 3)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )


class MobileStudent(nn.Module):
    """A small MobileNet: a strided stem, five depthwise-separable blocks, average pooling, linear.

    The width multiplies every channel count (Howard et al. 2017, section 3.3).
    Input `[N, 1, 28, 28]` in [0, 1]; output logits `[N, 10]`.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        c16, c32, c64, c128 = (max(1, round(c * width)) for c in (16, 32, 64, 128))
        self.stem = nn.Sequential(
            nn.Conv2d(1, c16, 3, 2, padding=1, bias=False), nn.BatchNorm2d(c16), nn.ReLU()
        )
        self.blocks = nn.Sequential(
            _DepthwiseBlock(c16, c32, 1),
            _DepthwiseBlock(c32, c64, 2),
            _DepthwiseBlock(c64, c64, 1),
            _DepthwiseBlock(c64, c128, 2),
            _DepthwiseBlock(c128, c128, 1),
        )
        self.classifier = nn.Linear(c128, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        features = self.blocks(self.stem(images))
        logits: Tensor = self.classifier(torch.mean(features, dim=(2, 3)))
        return logits
