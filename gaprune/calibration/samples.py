"""A set of inputs with labels, if any, and a description of its source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Samples(NamedTuple):
    """Inputs in memory."""

    inputs: Tensor  # `[N, *spec.shape]` as the network takes them (normalised), or int64 token ids
    labels: Tensor | None  # int64 `[N]`, or None
    source: str  # where the inputs come from, for people

    def take(self, index: Tensor) -> Samples:
        """Return the rows of an int64 index `[n]`."""
        labels = None if self.labels is None else self.labels[index]
        return Samples(self.inputs[index], labels, self.source)

    def random_order(self, generator: torch.Generator) -> Tensor:
        """Return a random permutation of the row numbers, int64 `[N]`."""
        return torch.randperm(len(self.inputs), generator=generator)

    def to(self, dtype: torch.dtype) -> Samples:
        """Return the samples with inputs of a floating dtype; token ids stay int64."""
        # A cast would turn token ids into numbers that no embedding accepts.
        if not self.inputs.is_floating_point():
            return self
        return self._replace(inputs=self.inputs.to(dtype))


def concatenate(parts: Sequence[Samples]) -> Samples:
    """Concatenate one or more sets; labels survive only if every part has them."""
    labels = [part.labels for part in parts if part.labels is not None]
    return Samples(
        torch.cat([part.inputs for part in parts]),
        torch.cat(labels) if len(labels) == len(parts) else None,
        "; ".join(part.source for part in parts),
    )
