"""Random draws that all generators share, and the map from the unit range to network inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gaprune.models.input_spec import InputSpec

InputGenerator = Callable[[InputSpec, int, torch.Generator], Tensor]
"""(spec, count, CPU generator) → `[count, *spec.shape]`: float32 in [0, 1], or int64 token ids."""


def draw_uniform(
    generator: torch.Generator, *shape: int, low: float = 0.0, high: float = 1.0
) -> Tensor:
    """Draw float32 `[*shape]`, uniform on [low, high)."""
    return torch.rand(*shape, generator=generator).mul_(high - low).add_(low)


def draw_log_uniform(generator: torch.Generator, *shape: int, low: float, high: float) -> Tensor:
    """Draw float32 `[*shape]` whose logarithm is uniform between two positive limits."""
    ratio = torch.tensor(high / low)
    return low * ratio ** torch.rand(*shape, generator=generator)


def draw_normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Draw float32 `[*shape]`, standard normal."""
    return torch.randn(*shape, generator=generator)


def draw_bool(generator: torch.Generator, probability: float, *shape: int) -> Tensor:
    """Draw bool `[*shape]`, each true with `probability`."""
    return torch.rand(*shape, generator=generator) < probability


def draw_power_law_fields(
    count: int, size: Sequence[int], exponents: Tensor, generator: torch.Generator
) -> Tensor:
    """Draw random fields whose amplitude spectrum falls as 1/f^a, float32 `[count, *size]`.

    `size` are one or two axis lengths; `exponents` are a, float32 `[count]`: 0 is white noise,
    natural images are near 1 (Field 1987). Each field has mean 0 and, unless constant, variance 1.
    """
    radius = torch.fft.rfftfreq(size[-1])
    if len(size) == 2:
        radius = torch.hypot(torch.fft.fftfreq(size[0]).unsqueeze(1), radius)
    # Avoids log 0 at frequency 0; the mean is removed below.
    radius.view(-1)[0] = 1 / max(size)
    decay = radius.log().expand(count, *radius.shape)
    decay = torch.exp(-exponents.view(-1, *[1] * len(size)) * decay)
    phases = torch.complex(
        draw_normal(generator, *decay.shape), draw_normal(generator, *decay.shape)
    )
    axes = tuple(range(1, len(size) + 1))
    field = torch.fft.irfftn(phases * decay, s=tuple(size), dim=axes)
    field = field - field.mean(axes, keepdim=True)
    deviation: Tensor = field.square().mean(axes, keepdim=True).sqrt()
    fields: Tensor = field / deviation.clamp(min=1e-12)
    return fields


def to_network(spec: InputSpec, unit: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Map inputs `[N, *spec.shape]` in [0, 1] to (low + (high − low)·x − mean) / std.

    Token ids are returned unchanged. `dtype` is what the network computes in; None keeps that of
    `unit`.
    """
    if spec.kind == "tokens":
        return unit
    inputs = normalise(spec, spec.low + (spec.high - spec.low) * unit)
    return inputs if dtype is None else inputs.to(dtype)


def normalise(spec: InputSpec, raw: Tensor) -> Tensor:
    """Apply mean and std to raw values `[N, *spec.shape]` in [low, high]."""

    def per_channel(values: tuple[float, ...]) -> Tensor:
        shape = [len(values)] + [1] * (len(spec.shape) - 1)
        return torch.tensor(values, dtype=raw.dtype, device=raw.device).view(shape)

    return (raw - per_channel(spec.mean)) / per_channel(spec.std)
