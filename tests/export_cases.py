"""Small runs that the tests of exports and measurements share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gaprune import InputOptions, Result, prune
from gaprune.config import make_settings
from gaprune.runs.job import make_job
from gaprune.runs.prune import prune_target

TINY: dict[str, Any] = {"method": "magnitude", "calibration_count": 16, "validation_count": 16}


class Branched(nn.Module):
    """Convolution, BatchNorm with buffers, two layers that share a weight, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.a, self.b, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.b.weight = self.a.weight

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits `[N, 3]`."""
        features = self.norm(self.conv(inputs)).relu().flatten(1)
        out: Tensor = self.head(self.b(self.a(features).relu()).relu())
        return out


def dense_network() -> nn.Module:
    """Return the network before pruning; its BatchNorm has seen something."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = Branched()
        model(torch.rand(32, 1, 4, 4))
    return model.eval()


def tiny_result(**settings: Any) -> Result:
    """Prune `dense_network` in a moment."""
    inputs = InputOptions(shape=(1, 4, 4), range=(0, 1))
    return prune(dense_network(), sparsity=0.7, inputs=inputs, **TINY, **settings)


def zoo_result(name: str, sparsity: float) -> Result:
    """Prune a network of the zoo by magnitude, judged on a handful of inputs."""
    target, _ = make_job({"target": name, "sparsity": sparsity}).load()
    return prune_target(target, make_settings({"sparsity": sparsity, **TINY}))


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Tell whether two state dicts are equal in every bit, also of NaN and −0."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].contiguous().reshape(-1).view(torch.uint8).tolist()
        == other[name].contiguous().reshape(-1).view(torch.uint8).tolist()
        for name in one
    )
