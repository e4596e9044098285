"""Procedural calibration inputs: structured inputs computed from nothing but random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gaprune.calibration.generators.draws import InputGenerator, mix
from gaprune.calibration.generators.pictures import PICTURES
from gaprune.calibration.generators.signals import SIGNALS
from gaprune.calibration.generators.token_sequences import TOKENS
from gaprune.calibration.generators.vectors import VECTORS
from gaprune.models.input_spec import InputSpec

GENERATORS: dict[str, dict[str, InputGenerator]] = {
    "image": PICTURES,
    "signal": SIGNALS,
    "tokens": TOKENS,
    "vector": VECTORS,
}
"""Kind of input → name → generator."""


def procedural(
    spec: InputSpec, count: int, generator: torch.Generator, names: Sequence[str] | None = None
) -> Tensor:
    """Draw fresh procedural inputs from the generators of the spec's kind, equal parts, shuffled.

    Args:
        spec: what one input looks like.
        count: how many, at least 1.
        generator: CPU generator; the same state gives the same inputs, and every call advances it.
        names: a subset of `GENERATORS[spec.kind]`; None takes all.

    Returns:
        `[count, *spec.shape]` in the unit range, float32 (token ids int64); `to_network` maps it
        to what the network takes.

    Raises:
        InputError: an unknown kind or name, no names, a count below 1, a shape of the wrong axes.
    """
    return mix(GENERATORS, spec, count, generator, names)
