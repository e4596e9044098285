"""More of a few made inputs: shifted and mirrored copies."""

from __future__ import annotations

import torch
from torch import Tensor

from gaprune.calibration.inversion.impressions import moving_axes
from gaprune.calibration.samples import Samples
from gaprune.models.input_spec import InputSpec

COPIES = 3  # beside the inputs themselves
SHIFT = 1 / 8  # of an axis, at most
GROUP = 8  # inputs that are shifted alike


def with_variants(made: Samples, spec: InputSpec, generator: torch.Generator) -> Samples:
    """Return made inputs `[N, …]`, then `COPIES` times as many moved ones.

    Inverted inputs are optimised under shifts and reflections, so that moved ones look to the
    network as much like its domain, and the search cannot learn single pixels by heart. Inputs
    that cannot be moved come back as they are.
    """
    if not moving_axes(spec):
        return made
    batches = [made.inputs, *(augment(made.inputs, spec, generator) for _ in range(COPIES))]
    source = f"{made.source}, with {COPIES} moved copies of each"
    return Samples(torch.cat(batches), None, source)


def augment(inputs: Tensor, spec: InputSpec, generator: torch.Generator) -> Tensor:
    """Shift and mirror inputs `[N, …]`, every `GROUP` of them in a way of their own."""
    return torch.cat([moved(group, spec, SHIFT, generator) for group in inputs.split(GROUP)])


def moved(
    inputs: Tensor,
    spec: InputSpec,
    shift: float,
    generator: torch.Generator,
    *,
    mirror: bool = True,
) -> Tensor:
    """Shift a batch at random along every axis that allows it, and mirror images half the time.

    Args:
        inputs: `[N, *spec.shape]`; what leaves on one side comes in on the other.
        spec: images move along height and width, signals in time.
        shift: at most so much of an axis.
        generator: draws shifts and reflections, one for the whole batch.
        mirror: whether images may be mirrored left to right.
    """
    for axis in moving_axes(spec):
        most = round(shift * inputs.shape[axis])
        inputs = inputs.roll(int(torch.randint(-most, most + 1, (), generator=generator)), axis)
    if mirror and spec.kind == "image" and torch.rand((), generator=generator) < 0.5:
        inputs = inputs.flip(-1)
    return inputs
