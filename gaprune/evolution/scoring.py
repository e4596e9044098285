"""Many masks scored on one rung: each by a task of its own, or some of them in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaprune.evaluation.evaluator import Evaluator
from gaprune.evaluation.lru_cache import LRUCache
from gaprune.evolution.tasks import ScoreTask
from gaprune.evolution.toolbox import Contender
from gaprune.masks.supermask import unpack
from gaprune.workers import FailedTask

Bits = NDArray[np.uint8]
KNOWN = 1 << 14  # masks whose scores a search remembers


@dataclass(frozen=True)
class ScoreGroupTask:
    """Score several packed masks on one rung, as they are, in one forward pass where that can be.

    What a mask scores does not depend on the others; see `Evaluator.fitness_many`.
    """

    bits: tuple[Bits, ...]
    rung: int

    @property
    def kind(self) -> str:
        """Every rung takes its time, full groups or not."""
        return f"ScoreGroup, rung {self.rung}"

    def run(self, evaluator: Evaluator) -> list[float]:
        """Return the fitness of each."""
        masks = [unpack(bits, evaluator.layout.total) for bits in self.bits]
        return evaluator.fitness_many(masks, self.rung)


def score_masks(
    run: Callable[[Sequence[Any]], list[Any]],
    masks: Sequence[Bits],
    rung: int,
    *,
    repaired: bool = False,
    group: int = 1,
) -> list[float | FailedTask]:
    """Score packed masks, in their order.

    Args:
        run: runs tasks on workers.
        masks: packed.
        rung: of the search calibration inputs.
        repaired: as they answer after repair; they are never grouped.
        group: masks per task. A group that takes down its workers is tried mask by mask, so that
            one does not take the others with it.
    """
    if group == 1 or repaired:
        return run([ScoreTask(bits, rung, repaired) for bits in masks])
    groups = [tuple(masks[start : start + group]) for start in range(0, len(masks), group)]
    found: list[float | FailedTask] = []
    for one, scores in zip(groups, run([ScoreGroupTask(g, rung) for g in groups]), strict=True):
        found += _one_by_one(run, one, rung) if isinstance(scores, FailedTask) else scores
    return found


def _one_by_one(
    run: Callable[[Sequence[Any]], list[Any]], group: Sequence[Bits], rung: int
) -> list[float | FailedTask]:
    """Score the masks of a group that was lost, as the group would have."""
    scores = run([ScoreGroupTask((bits,), rung) for bits in group])
    return [one if isinstance(one, FailedTask) else one[0] for one in scores]


class Scores:
    """What the masks of a search score; workers are asked once about each.

    Nothing depends on what is remembered: a search counts these as evaluations too, and one that is
    resumed begins with nothing.

    Args:
        run: runs tasks on workers.
        group: masks per task, always the same: rounding depends on it.
    """

    def __init__(self, run: Callable[[Sequence[Any]], list[Any]], group: int) -> None:
        self._run, self._group = run, group
        self._known: LRUCache[tuple[str, int, bool], float] = LRUCache(KNOWN)

    def of(
        self, contenders: Sequence[Contender], rung: int, *, repaired: bool = False
    ) -> list[float | FailedTask]:
        """Score contenders on a rung, in their order; see `score_masks`."""
        masks = {one.key: one.bits for one in contenders}
        found: dict[str, float | FailedTask] = {}
        for key in masks:
            known = self._known.get((key, rung, repaired))
            found |= {} if known is None else {key: known}
        new = [key for key in masks if key not in found]
        bits, group = [masks[key] for key in new], self._group
        scores = score_masks(self._run, bits, rung, repaired=repaired, group=group) if new else []
        for key, score in zip(new, scores, strict=True):
            found[key] = score
            if not isinstance(score, FailedTask):
                self._known.put((key, rung, repaired), score)
        return [found[one.key] for one in contenders]
