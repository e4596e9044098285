"""EfficientNet-Lite0 with random weights, for timing without its package."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

# Expansion, channels, blocks, stride, kernel (Tan and Le 2019, table 1). Lite omits squeeze and
# excitation and uses ReLU6.
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
STEM, HEAD, CLASSES = 32, 1280, 1000


def _convolution(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class InvertedResidual(nn.Module):
    """1×1 expansion, depthwise kernel, 1×1 projection (Sandler et al. 2018, figure 3d)."""

    def __init__(
        self, inputs: int, outputs: int, *, expansion: int, stride: int, kernel: int
    ) -> None:
        super().__init__()
        wide = inputs * expansion
        parts: list[nn.Module] = []
        if expansion > 1:
            parts += [_convolution(inputs, wide, 1, 1, 1), nn.ReLU6()]
        parts += [_convolution(wide, wide, kernel, stride, wide), nn.ReLU6()]
        parts += [_convolution(wide, outputs, 1, 1, 1)]
        self.block = nn.Sequential(*parts)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, features: Tensor) -> Tensor:
        """Map `[N, inputs, H, W]` to `[N, outputs, H/stride, W/stride]`."""
        residual: Tensor = self.block(features)
        return features + residual if self.residual else residual


class EfficientNetLite0(nn.Module):
    """Stem, seven stages of inverted residuals, head, pooling, linear; 4,652,008 parameters.

    Input `[N, 3, H, W]`, usually 224 × 224; output logits `[N, 1000]`.
    """

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        ends = pairwise((STEM, *(outputs for _, outputs, *_ in STAGES)))
        for (inputs, outputs), (expansion, _, count, stride, kernel) in zip(
            ends, STAGES, strict=True
        ):
            for index in range(count):
                first = index == 0
                blocks.append(
                    InvertedResidual(
                        inputs if first else outputs,
                        outputs,
                        expansion=expansion,
                        stride=stride if first else 1,
                        kernel=kernel,
                    )
                )
        self.stem = nn.Sequential(_convolution(3, STEM, 3, 2, 1), nn.ReLU6())
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(_convolution(STAGES[-1][1], HEAD, 1, 1, 1), nn.ReLU6())
        self.classifier = nn.Linear(HEAD, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        features = self.head(self.blocks(self.stem(images)))
        logits: Tensor = self.classifier(torch.mean(features, dim=(2, 3)))
        return logits
