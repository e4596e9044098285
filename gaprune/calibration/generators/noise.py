"""Noise: the cheapest calibration inputs, without any structure. Values in the unit range."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gaprune.calibration.generators.draws import InputGenerator, mix, normal, uniform
from gaprune.calibration.generators.token_sequences import uniform_ids
from gaprune.models.input_spec import InputSpec


def uniform_noise(spec: InputSpec, count: int, generator: torch.Generator) -> Tensor:
    """Draw `[count, *spec.shape]`, every value uniform on [0, 1)."""
    return uniform(generator, count, *spec.shape)


def gaussian_noise(spec: InputSpec, count: int, generator: torch.Generator) -> Tensor:
    """Draw `[count, *spec.shape]`, every value from N(1/2, 1/4²), clipped to [0, 1]."""
    return normal(generator, count, *spec.shape).mul_(0.25).add_(0.5).clamp_(0, 1)


_FLOAT: dict[str, InputGenerator] = {"gaussian": gaussian_noise, "uniform": uniform_noise}

NOISE: dict[str, dict[str, InputGenerator]] = {
    "image": _FLOAT,
    "signal": _FLOAT,
    "vector": _FLOAT,
    "tokens": {"uniform": uniform_ids},
}
"""Kind of input → name → generator."""


def noise(
    spec: InputSpec, count: int, generator: torch.Generator, names: Sequence[str] | None = None
) -> Tensor:
    """Draw `[count, *spec.shape]` noise in [0, 1] (token ids int64); arguments as in `mix`."""
    return mix(NOISE, spec, count, generator, names)
