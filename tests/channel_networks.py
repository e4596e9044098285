"""Small networks, one for each way in which channels depend on each other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

IMAGE = (2, 6, 6)  # input shape of all of them


class Separable(nn.Module):
    """A depthwise-separable block between a convolution and a linear layer."""

    def __init__(self, first: int = 6, second: int = 8) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(2, first, 3, bias=False), nn.BatchNorm2d(first)
        self.deep = nn.Conv2d(first, first, 3, padding=1, groups=first, bias=False)
        self.deep_norm = nn.BatchNorm2d(first)
        self.point, self.point_norm = nn.Conv2d(first, second, 1), nn.BatchNorm2d(second)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(second, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.act(self.stem_norm(self.stem(images)))
        hidden = self.act(self.deep_norm(self.deep(hidden)))
        hidden = self.act(self.point_norm(self.point(hidden)))
        logits: Tensor = self.head(hidden.mean((2, 3)))
        return logits

    @staticmethod
    def count(first: int, second: int) -> int:
        """Return the number of parameters for these widths."""
        stem, deep = 2 * 9 * first + 2 * first, 9 * first + 2 * first
        return stem + deep + (first + 1) * second + 2 * second + second * 3 + 3

    @staticmethod
    def prunable(first: int, second: int) -> int:
        """Return the number of weights of convolutions and linear layers for these widths."""
        return 2 * 9 * first + 9 * first + first * second + second * 3


class Residual(nn.Module):
    """A residual block between a convolution and a linear layer."""

    def __init__(self, outer: int = 5, inner: int = 7) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(2, outer, 3, padding=1), nn.BatchNorm2d(outer)
        self.down, self.down_norm = nn.Conv2d(outer, inner, 3, padding=1), nn.BatchNorm2d(inner)
        self.back, self.back_norm = nn.Conv2d(inner, outer, 3, padding=1), nn.BatchNorm2d(outer)
        self.head = nn.Linear(outer * 9, 3)

    def forward(self, images: Tensor) -> Tensor:
        outer = functional.relu(self.stem_norm(self.stem(images)))
        inner = functional.elu(self.down_norm(self.down(outer)))
        total = torch.sigmoid(outer + self.back_norm(self.back(inner)))
        logits: Tensor = self.head(functional.avg_pool2d(total, 2).flatten(1))
        return logits

    @staticmethod
    def count(outer: int, inner: int) -> int:
        """Return the number of parameters for these widths."""
        convolutions = (18 + 1) * outer + (9 * outer + 1) * inner + (9 * inner + 1) * outer
        return convolutions + 2 * (2 * outer + inner) + 9 * outer * 3 + 3


class Joined(nn.Module):
    """Two branches of convolutions joined by concatenation, read by one convolution."""

    def __init__(self, left: int = 4, right: int = 5, last: int = 6) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, left, 3), nn.Conv2d(2, right, 3)
        self.norm = nn.BatchNorm2d(left)
        self.last = nn.Conv2d(left + right, last, 3)
        self.act = nn.PReLU(last)
        self.head = nn.Linear(4 * last, 3)

    def forward(self, images: Tensor) -> Tensor:
        branches = [self.norm(self.left(images)), functional.relu(self.right(images))]
        hidden = self.act(self.last(torch.cat(branches, 1)))
        logits: Tensor = self.head(hidden.flatten(1))
        return logits

    @staticmethod
    def count(left: int, right: int, last: int) -> int:
        """Return the number of parameters for these widths."""
        branches = (18 + 1) * (left + right) + 2 * left
        return branches + (9 * (left + right) + 1) * last + last + 4 * last * 3 + 3


class Summed(nn.Module):
    """A convolution: half of its channels are added to one branch, half to another."""

    def __init__(self) -> None:
        super().__init__()
        self.whole, self.left, self.right = (nn.Conv2d(2, c, 3, bias=False) for c in (6, 3, 3))
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        halves = torch.cat([self.left(images), self.right(images)], 1)
        hidden = functional.relu(self.norm(self.whole(images) + halves))
        logits: Tensor = self.head(hidden.mean((2, 3)))
        return logits


class Enlarging(nn.Module):
    """A transposed convolution, a depthwise transposed one, and a gate over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3)
        self.wide = nn.ConvTranspose2d(4, 6, 3)
        self.deep = nn.ConvTranspose2d(6, 6, 3, groups=6)
        self.act = nn.PReLU()
        self.squeeze, self.gate = nn.Linear(6, 4), nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.deep(self.act(self.wide(self.first(images))))
        gate = self.gate(torch.tanh(self.squeeze(hidden.mean((2, 3)))))
        logits: Tensor = self.head((hidden * torch.sigmoid(gate)[:, :, None, None]).mean((2, 3)))
        return logits


def built(build: Callable[[], nn.Module], seed: int = 3) -> nn.Module:
    """Build a frozen network of seeded weights, with norms that differ from new ones."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build().eval().requires_grad_(False)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.get_buffer("running_mean"), -0.1, 0.1)
                nn.init.uniform_(module.get_buffer("running_var"), 0.2, 2)
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.uniform_(module.bias, -1, 1)
    return model


def images(count: int, seed: int = 0) -> Tensor:
    """Return random inputs."""
    return torch.randn(count, *IMAGE, generator=torch.Generator().manual_seed(seed))


def parameters(model: nn.Module) -> int:
    """Count the parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
