"""Token sequences for a target: written by it, or varied until its answers differ.

A causal language model knows its domain and writes (`token_search.written`). Any other network is
shown sequences whose tokens were replaced until its answers spread (`token_search.diversify`).
"""

from __future__ import annotations

import time
from dataclasses import asdict

import torch
from torch import Tensor

from gaprune.calibration.cached_inputs import Maker, Order, draw_seed, make_or_read
from gaprune.calibration.generators.mixture import GeneratorMixture
from gaprune.calibration.inversion.token_search import TokenSearch, diversify, writes, written
from gaprune.calibration.samples import Samples
from gaprune.callbacks import Observer
from gaprune.models.target import Target

WRITING, VARYING = "writing sequences", "varying sequences"  # name the part of the run in progress
ROWS = 32  # sequences written together
MEMORY = 5e8  # bytes that the answers to the sequences of one pass may take
COPIES = 6  # of the answers, that a search holds at a time


def sequence_samples(
    target: Target,
    starts: GeneratorMixture,
    count: int,
    generator: torch.Generator,
    seconds: float | None,
    observer: Observer,
) -> Samples:
    """Make sequences, or read what was made for the same weights, settings and seed.

    Args:
        target: a network that takes token ids.
        starts: draws the sequences that are varied; of those that are written, the first token.
        count: how many sequences.
        generator: gives the seed; it advances equally whether the sequences are made or read.
        seconds: for making them; fewer are written then, or fewer tokens replaced, so the result
            depends on the machine's speed. None is no limit.
        observer: told of progress, and of a cache that cannot be used.

    Raises:
        InputError: the network neither writes nor passes gradients to an embedding of the ids.
    """
    order = Order(target, starts, count, draw_seed(generator))
    example = target.example()
    if writes(target.model, target.inputs, example):
        rows = _rows(target, example, ROWS, least=1, copies=1)
        writer = _Writer(target, rows, seconds, observer)
        how = {"form": "written", "rows": rows, "seconds": seconds}
        made = make_or_read(order, how, writer.write, observer)
        source = f"{len(made)} sequences written by the network, first token from"
    else:
        batch = _rows(target, example, TokenSearch.batch, least=2, copies=COPIES)
        search = TokenSearch(batch=batch, seconds=seconds)
        made = make_or_read(
            order, {"form": "varied", **asdict(search)}, _vary(target, search, observer), observer
        )
        source = f"{len(made)} sequences varied until the answers differ, started from"
    return Samples(made, None, f"{source} {starts.description}")


@torch.no_grad()
def _rows(target: Target, example: Tensor, most: int, *, least: int, copies: int) -> int:
    """Return how many sequences' answers, each so many times, fit into memory."""
    answer: Tensor = target.model(example)
    return max(least, min(most, int(MEMORY // (copies * answer.numel() * answer.element_size()))))


def _vary(target: Target, how: TokenSearch, observer: Observer) -> Maker:
    def make(begin: Tensor, own: torch.Generator) -> Tensor:
        return diversify(
            target.model,
            target.inputs,
            begin,
            own,
            how,
            lambda done, total: observer.progress(VARYING, done, total),
        )

    return make


class _Writer:
    """Writes in batches, and no further one that would end after the time is over."""

    def __init__(
        self, target: Target, rows: int, seconds: float | None, observer: Observer
    ) -> None:
        self.target, self.rows, self.seconds, self.observer = target, rows, seconds, observer

    def write(self, starts: Tensor, own: torch.Generator) -> Tensor:
        """Let the network go on from the first token of each start `[N, L]`."""
        made: list[Tensor] = []
        began, longest, done = time.monotonic(), 0.0, 0
        for batch in starts.split(self.rows):
            start = time.monotonic()
            if made and self.seconds is not None and start - began + longest > self.seconds:
                break
            made.append(written(self.target.model, self.target.inputs, batch, own))
            longest, done = max(longest, time.monotonic() - start), done + len(batch)
            self.observer.progress(WRITING, done, len(starts))
        return torch.cat(made)
