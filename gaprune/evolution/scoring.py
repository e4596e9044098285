"""Many masks scored on one rung: each by a task of its own, or some of them in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaprune.bench import Bench
from gaprune.evolution.breeding import Score
from gaprune.supermask import unpack
from gaprune.workers import Lost

Bits = NDArray[np.uint8]


@dataclass(frozen=True)
class ScoreGroup:
    """Score several packed masks on one rung, as they are, in one forward pass where that can be.

    What a mask scores does not depend on the others; see `Bench.fitness_many`.
    """

    bits: tuple[Bits, ...]
    rung: int

    @property
    def kind(self) -> str:
        """Every rung takes its time, full groups or not."""
        return f"ScoreGroup, rung {self.rung}"

    def run(self, bench: Bench) -> list[float]:
        """Return the fitness of each."""
        masks = [unpack(bits, bench.layout.total) for bits in self.bits]
        return bench.fitness_many(masks, self.rung)


def score_masks(
    run: Callable[[Sequence[Any]], list[Any]],
    masks: Sequence[Bits],
    rung: int,
    *,
    repaired: bool = False,
    group: int = 1,
) -> list[float | Lost]:
    """Score packed masks, in their order.

    Args:
        run: runs tasks on workers.
        masks: packed.
        rung: of the search probes.
        repaired: as they answer after repair; they are never grouped.
        group: masks per task. A group that takes down its workers is tried mask by mask, so that
            one does not take the others with it.
    """
    if group == 1 or repaired:
        return run([Score(bits, rung, repaired) for bits in masks])
    groups = [tuple(masks[start : start + group]) for start in range(0, len(masks), group)]
    found: list[float | Lost] = []
    for one, scores in zip(groups, run([ScoreGroup(g, rung) for g in groups]), strict=True):
        found += _one_by_one(run, one, rung) if isinstance(scores, Lost) else scores
    return found


def _one_by_one(
    run: Callable[[Sequence[Any]], list[Any]], group: Sequence[Bits], rung: int
) -> list[float | Lost]:
    """Score the masks of a group that was lost, as the group would have."""
    scores = run([ScoreGroup((bits,), rung) for bits in group])
    return [one if isinstance(one, Lost) else one[0] for one in scores]
