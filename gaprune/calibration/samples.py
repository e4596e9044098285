"""A set of inputs with what is known about it: taken apart, joined, put in random order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
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


def join(parts: Sequence[Samples]) -> Samples | None:
    """Concatenate; labels survive only where every part has them. None of nothing."""
    if not parts:
        return None
    labels = [part.labels for part in parts if part.labels is not None]
    return Samples(
        torch.cat([part.inputs for part in parts]),
        torch.cat(labels) if len(labels) == len(parts) else None,
        "; ".join(part.source for part in parts),
    )


def pick(samples: Samples, index: Tensor) -> Samples:
    """Return the rows of an int64 index `[n]`."""
    labels = None if samples.labels is None else samples.labels[index]
    return Samples(samples.inputs[index], labels, samples.source)


def shuffle(samples: Samples, generator: torch.Generator) -> Tensor:
    """Return a random order of the rows, int64 `[N]`."""
    return torch.randperm(len(samples.inputs), generator=generator)


def typed(samples: Samples, dtype: torch.dtype) -> Samples:
    """Return the samples in a floating dtype; token ids stay int64."""
    floating = samples.inputs.is_floating_point()
    return samples._replace(inputs=samples.inputs.to(dtype)) if floating else samples
