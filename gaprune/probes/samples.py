"""A set of inputs with what is known about it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Samples(NamedTuple):
    """Inputs held in memory.

    Attributes:
        inputs: `[N, *spec.shape]` as the network takes them (normalised), or int64 token ids.
        labels: int64 `[N]`, or None where there are none.
        source: where they came from, in words.
    """

    inputs: Tensor
    labels: Tensor | None
    source: str
