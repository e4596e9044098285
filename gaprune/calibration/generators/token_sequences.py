"""Procedural token ids: uniform, Zipf-distributed with repeated n-grams, and about topics."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gaprune.calibration.generators.draws import InputGenerator, chance
from gaprune.calibration.generators.neighbours import neighbours
from gaprune.models.input_spec import InputSpec

LONGEST_NGRAM = 8
ENTER, STAY = 0.1, 0.85  # of the two-state chain that switches copying on and off
TOPICS = 2  # of a sequence
NEIGHBOURS = 32  # ids that belong to a topic
ABOUT = 0.5  # of a sequence's tokens belong to its topics
RARE = 0.7  # of the topics are drawn evenly, the others as common tokens are


def uniform_ids(spec: InputSpec, count: int, generator: torch.Generator) -> Tensor:
    """Draw int64 ids `[count, *spec.shape]`, uniform below the vocabulary."""
    return torch.randint(spec.vocabulary, (count, *spec.shape), generator=generator)


def zipf_bursts(spec: InputSpec, count: int, generator: torch.Generator) -> Tensor:
    """Draw int64 ids `[count, *spec.shape]` with the statistics of running text.

    Fresh tokens follow the Zipf–Mandelbrot law p(rank) ∝ 1/(rank + 2.7). Ranks are those of
    `spec.token_ids`, and a text stands between its marks of start and end; where nobody knows them,
    ranks are given to ids anew on every call, and there are no marks. A two-state Markov chain
    switches copying on and off; while it is on, a row repeats what stood n places before (n fixed
    per row, up to 8), so n-grams come in bursts.
    """
    length = _places(spec)
    ids = _running(spec, count, length, generator)[0]
    copying = _switch(count, length, generator)
    lags = torch.randint(1, LONGEST_NGRAM + 1, (count, 1), generator=generator)
    for place in range(1, length):
        source = place - lags
        repeated = ids.gather(1, source.clamp(min=0))
        copied = copying[:, place : place + 1] & (source >= 0)
        ids[:, place : place + 1] = torch.where(copied, repeated, ids[:, place : place + 1])
    return _framed(spec, ids)


def topics(spec: InputSpec, count: int, generator: torch.Generator) -> Tensor:
    """Draw int64 ids `[count, *spec.shape]`: texts that are about something.

    As of `zipf_bursts`, tokens follow the Zipf–Mandelbrot law between marks of start and end. Half
    of them are replaced by neighbours of two topic tokens: the 32 ids of the most similar
    embeddings, the topic's own among them, each equally likely. Embeddings of a trained network put
    words of a kind together (Mikolov et al. 2013, section 4), so that a sequence has a subject as a
    sentence has, and sequences differ in more than chance. Seven topics of ten are drawn evenly
    from all ordinary ids, the others as tokens are. Where the embedding is not known, the
    neighbours of a topic are drawn at random.
    """
    length = _places(spec)
    ids, ordered = _running(spec, count, length, generator)
    common = ordered[_ranks(len(ordered), count * TOPICS, generator)]
    even = ordered[torch.randint(len(ordered), (count * TOPICS,), generator=generator)]
    topic = torch.where(chance(generator, RARE, count * TOPICS), even, common)
    kin = neighbours(spec, topic, ordered, NEIGHBOURS, generator).view(count, -1)
    about = kin.gather(1, torch.randint(kin.shape[1], ids.shape, generator=generator))
    return _framed(spec, torch.where(chance(generator, ABOUT, *ids.shape), about, ids))


def _running(
    spec: InputSpec, count: int, length: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw ids `[count, length]` by the law; return also all ids that it knows, in its order."""
    known = (
        None
        if spec.token_ids is None
        else torch.tensor(spec.token_ids.by_frequency, dtype=torch.int64)
    )
    if known is not None and len(known):
        return known[_ranks(len(known), count * length, generator)].view(count, length), known
    ranks = _ranks(spec.vocabulary, count * length, generator)
    ordered = torch.randperm(spec.vocabulary, generator=generator)
    return ordered[ranks].view(count, length), ordered


def _ranks(entries: int, draws: int, generator: torch.Generator) -> Tensor:
    law = 1 / (torch.arange(1, entries + 1, dtype=torch.float64) + 2.7)
    steps = law.cumsum(0)
    points = torch.rand(draws, generator=generator, dtype=torch.float64) * steps[-1]
    return torch.searchsorted(steps, points, right=True).clamp_(max=entries - 1)


def _marks(spec: InputSpec) -> tuple[list[int], list[int]]:
    """Return what stands before and after a text; nothing where no place would be left for it."""
    token_ids = spec.token_ids
    if token_ids is None:
        return [], []
    before, after = ([] if mark is None else [mark] for mark in (token_ids.start, token_ids.end))
    room = math.prod(spec.shape) > len(before) + len(after)
    return (before, after) if room else ([], [])


def _places(spec: InputSpec) -> int:
    """Return how many tokens stand between the marks."""
    return math.prod(spec.shape) - sum(map(len, _marks(spec)))


def _framed(spec: InputSpec, ids: Tensor) -> Tensor:
    before, after = (
        torch.tensor(marks, dtype=torch.int64).expand(len(ids), -1) for marks in _marks(spec)
    )
    return torch.cat([before, ids, after], dim=1).view(len(ids), *spec.shape)


def _switch(count: int, length: int, generator: torch.Generator) -> Tensor:
    enter = chance(generator, ENTER, count, length)
    stay = chance(generator, STAY, count, length)
    on = torch.zeros(count, length, dtype=torch.bool)
    for place in range(1, length):
        on[:, place] = torch.where(on[:, place - 1], stay[:, place], enter[:, place])
    return on


TOKENS: dict[str, InputGenerator] = {
    "uniform": uniform_ids,
    "zipf-bursts": zipf_bursts,
    "topics": topics,
}


LIKE_TEXT = ("topics", "zipf-bursts")  # with ranks known, best first
UNRANKED = ("uniform", "zipf-bursts")  # with ranks at random, topics select worse masks than these


def is_ranked(spec: InputSpec) -> bool:
    """Say whether it is known which token ids are common."""
    return spec.token_ids is not None and bool(spec.token_ids.by_frequency)
