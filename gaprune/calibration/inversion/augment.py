"""Random shifts and reflections of images and signals."""

from __future__ import annotations

import torch
from torch import Tensor

from gaprune.calibration.samples import Samples
from gaprune.models.input_spec import InputSpec

COPIES = 3  # in addition to the inputs themselves
MAX_SHIFT = 1 / 8  # of an axis
GROUP = 8  # inputs that are shifted alike: one copy per input would be slow


def moving_axes(spec: InputSpec) -> tuple[int, ...]:
    """Return the axes along which an input may be shifted, counted from the last."""
    return {"image": (-1, -2), "signal": (-1,)}.get(spec.kind, ())


def with_copies(samples: Samples, spec: InputSpec, generator: torch.Generator) -> Samples:
    """Append `COPIES` shifted and mirrored copies of all inputs `[N, …]`.

    Inverted inputs are optimised under shifts and reflections, so the copies are as near to the
    training data as the originals, and the search cannot overfit single pixels. Inputs without a
    spatial or time axis are returned unchanged.
    """
    if not moving_axes(spec):
        return samples
    copies = [augment(samples.inputs, spec, generator) for _ in range(COPIES)]
    source = f"{samples.source}, with {COPIES} moved copies of each"
    return Samples(torch.cat([samples.inputs, *copies]), None, source)


def augment(inputs: Tensor, spec: InputSpec, generator: torch.Generator) -> Tensor:
    """Shift and mirror inputs `[N, …]` at random, `GROUP` of them alike."""
    groups = inputs.split(GROUP)
    return torch.cat([shift_and_mirror(group, spec, MAX_SHIFT, generator) for group in groups])


def shift_and_mirror(
    inputs: Tensor,
    spec: InputSpec,
    max_shift: float,
    generator: torch.Generator,
    *,
    mirror: bool = True,
) -> Tensor:
    """Shift a batch `[N, *spec.shape]` along its spatial or time axes, and mirror some images.

    `max_shift` is a fraction of the axis; shifts are cyclic. With `mirror`, images are mirrored
    left to right with probability ½. `generator` draws one shift and reflection for the batch.
    """
    for axis in moving_axes(spec):
        limit = round(max_shift * inputs.shape[axis])
        # A cyclic shift loses no value.
        inputs = inputs.roll(int(torch.randint(-limit, limit + 1, (), generator=generator)), axis)
    if mirror and spec.kind == "image" and torch.rand((), generator=generator) < 0.5:
        inputs = inputs.flip(-1)
    return inputs
