"""Procedural token ids: uniform, and Zipf-distributed with repeated n-grams."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gaprune.inputs import InputSpec
from gaprune.probes.draws import Generator_, chance

LONGEST_NGRAM = 8
ENTER, STAY = 0.1, 0.85  # of the two-state chain that switches copying on and off


def uniform_ids(spec: InputSpec, count: int, generator: torch.Generator) -> Tensor:
    """Draw int64 ids `[count, *spec.shape]`, uniform below the vocabulary."""
    return torch.randint(spec.vocabulary, (count, *spec.shape), generator=generator)


def zipf_bursts(spec: InputSpec, count: int, generator: torch.Generator) -> Tensor:
    """Draw int64 ids `[count, *spec.shape]` with the statistics of running text.

    Fresh tokens follow the Zipf–Mandelbrot law p(rank) ∝ 1/(rank + 2.7), with ranks given to ids
    anew on every call. A two-state Markov chain switches copying on and off; while it is on, a row
    repeats what stood n places before (n fixed per row, up to 8), so n-grams come in bursts.
    """
    length = math.prod(spec.shape)
    ids = _zipf(spec.vocabulary, count * length, generator).view(count, length)
    copying = _switch(count, length, generator)
    lags = torch.randint(1, LONGEST_NGRAM + 1, (count, 1), generator=generator)
    for place in range(1, length):
        source = place - lags
        repeated = ids.gather(1, source.clamp(min=0))
        copied = copying[:, place : place + 1] & (source >= 0)
        ids[:, place : place + 1] = torch.where(copied, repeated, ids[:, place : place + 1])
    return ids.view(count, *spec.shape)


def _zipf(vocabulary: int, draws: int, generator: torch.Generator) -> Tensor:
    law = 1 / (torch.arange(1, vocabulary + 1, dtype=torch.float64) + 2.7)
    steps = law.cumsum(0)
    points = torch.rand(draws, generator=generator, dtype=torch.float64) * steps[-1]
    ranks = torch.searchsorted(steps, points, right=True).clamp_(max=vocabulary - 1)
    return torch.randperm(vocabulary, generator=generator)[ranks]


def _switch(count: int, length: int, generator: torch.Generator) -> Tensor:
    enter = chance(generator, ENTER, count, length)
    stay = chance(generator, STAY, count, length)
    on = torch.zeros(count, length, dtype=torch.bool)
    for place in range(1, length):
        on[:, place] = torch.where(on[:, place - 1], stay[:, place], enter[:, place])
    return on


TOKENS: dict[str, Generator_] = {"uniform": uniform_ids, "zipf-bursts": zipf_bursts}
