"""What every calibration input generator shares: its signature, its random draws, its value range, mixing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from gaprune.errors import InputError, unknown_name
from gaprune.models.input_spec import InputSpec

InputGenerator = Callable[[InputSpec, int, torch.Generator], Tensor]
"""(spec, count, CPU generator) → `[count, *spec.shape]`: float32 in [0, 1], or int64 token ids."""

_AXES = {"image": (3,), "signal": (1, 2)}


def uniform(generator: torch.Generator, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Draw float32 `[*shape]`, uniform on [low, high)."""
    return torch.rand(*shape, generator=generator).mul_(high - low).add_(low)


def log_uniform(generator: torch.Generator, *shape: int, low: float, high: float) -> Tensor:
    """Draw float32 `[*shape]` between two positive ends, every octave equally likely."""
    ratio = torch.tensor(high / low)
    return low * ratio ** torch.rand(*shape, generator=generator)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Draw float32 `[*shape]`, standard normal."""
    return torch.randn(*shape, generator=generator)


def chance(generator: torch.Generator, probability: float, *shape: int) -> Tensor:
    """Draw bool `[*shape]`, each true with `probability`."""
    return torch.rand(*shape, generator=generator) < probability


def power_law(
    count: int, size: Sequence[int], exponents: Tensor, generator: torch.Generator
) -> Tensor:
    """Draw random fields whose amplitude spectrum falls as 1/f^a.

    Args:
        count: how many.
        size: one or two axis lengths.
        exponents: a, float32 `[count]`; 0 is white, natural images are near 1 (Field 1987).
        generator: source of randomness.

    Returns:
        float32 `[count, *size]`, every field of mean 0 and, unless it is constant, variance 1.
    """
    radius = torch.fft.rfftfreq(size[-1])
    if len(size) == 2:
        radius = torch.hypot(torch.fft.fftfreq(size[0]).unsqueeze(1), radius)
    radius.view(-1)[0] = 1 / max(size)  # the mean is removed below; only keep the power finite
    decay = radius.log().expand(count, *radius.shape)
    decay = torch.exp(-exponents.view(-1, *[1] * len(size)) * decay)
    phases = torch.complex(normal(generator, *decay.shape), normal(generator, *decay.shape))
    axes = tuple(range(1, len(size) + 1))
    field = torch.fft.irfftn(phases * decay, s=tuple(size), dim=axes)
    field = field - field.mean(axes, keepdim=True)
    spread: Tensor = field.square().mean(axes, keepdim=True).sqrt()
    fields: Tensor = field / spread.clamp(min=1e-12)
    return fields


def to_network(spec: InputSpec, unit: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Map unit-range inputs to what the network takes: x → (low + (high − low)·x − mean) / std.

    Args:
        spec: range and normalisation; token ids pass through unchanged.
        unit: `[N, *spec.shape]` in [0, 1].
        dtype: what the network computes in; None keeps the dtype of `unit`.

    Returns:
        `[N, *spec.shape]`.
    """
    if spec.kind == "tokens":
        return unit
    inputs = normalise(spec, spec.low + (spec.high - spec.low) * unit)
    return inputs if dtype is None else inputs.to(dtype)


def normalise(spec: InputSpec, raw: Tensor) -> Tensor:
    """Apply mean and std to raw values `[N, *spec.shape]` that lie in [low, high]."""

    def per_channel(values: tuple[float, ...]) -> Tensor:
        shape = [1] * len(spec.shape)
        shape[0] = len(values)
        return torch.tensor(values, dtype=raw.dtype, device=raw.device).view(shape)

    return (raw - per_channel(spec.mean)) / per_channel(spec.std)


def mix(
    tables: Mapping[str, Mapping[str, InputGenerator]],
    spec: InputSpec,
    count: int,
    generator: torch.Generator,
    names: Sequence[str] | None = None,
) -> Tensor:
    """Draw from several generators in equal parts, shuffled.

    Args:
        tables: kind of input → name → generator.
        spec: what one input looks like.
        count: how many inputs, at least 1; what does not divide goes to generators at random.
        generator: CPU generator, the only source of randomness.
        names: a subset of the kind's generators; None takes all.

    Returns:
        `[count, *spec.shape]`, float32 in [0, 1] (token ids int64).

    Raises:
        InputError: an unknown name, no names, a count below 1, a shape of the wrong axes.
    """
    table = tables[spec.kind]
    chosen = list(table if names is None else names)
    for name in chosen:
        if name not in table:
            raise unknown_name(f"{spec.kind} calibration input generator", name, table)
    if not chosen:
        raise InputError(
            f"calibration inputs: name at least one generator of {', '.join(sorted(table))}"
        )
    if count < 1:
        raise InputError(
            f"calibration inputs: the number of inputs must be at least 1, got {count}"
        )
    _check_axes(spec)
    turns = torch.randperm(len(chosen), generator=generator).tolist()
    parts = []
    for place, turn in enumerate(turns):
        share = len(range(place, count, len(chosen)))
        if share:
            parts.append(table[chosen[turn]](spec, share, generator))
    return torch.cat(parts)[torch.randperm(count, generator=generator)]


def _check_axes(spec: InputSpec) -> None:
    axes = _AXES.get(spec.kind, (len(spec.shape),))
    if len(spec.shape) not in axes:
        rule = " or ".join(map(str, axes))
        raise InputError(
            f"input shape: kind {spec.kind!r} needs {rule} axes without the batch axis, "
            f"got {spec.shape}; state another kind or shape"
        )
