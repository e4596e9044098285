"""A candidate whose task fails is left out: the search warns and continues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

import pytest
from search_cases import plan_for, seeds_of, tiny_evaluator

from gaprune.errors import GapruneError
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evolution.engine import Evolution
from gaprune.evolution.presets import as_pareto
from gaprune.evolution.search_plan import SearchLimits, SearchResult
from gaprune.evolution.tasks import BreedTask, ScoreTask, ValidateTask
from gaprune.workers import FailedTask, SerialWorkers

EVALUATOR = tiny_evaluator()
KEEP = 60
FAILED = FailedTask(3, "its process died")


class Losing(SerialWorkers):
    """Workers that fail at those tasks of a type whose number `fails` selects."""

    def __init__(self, evaluator: Evaluator, kind: type, fails: Callable[[int], bool]) -> None:
        super().__init__(evaluator)
        self._kind, self._fails = kind, fails
        self._seen = -1
        self.losses = 0

    def run(self, tasks: Sequence[Any]) -> list[Any]:
        """Replace some results by failures."""
        results = super().run(tasks)
        for index, task in enumerate(tasks):
            if isinstance(task, self._kind):
                self._seen += 1
                if self._fails(self._seen):
                    results[index] = FAILED
                    self.losses += 1
        return results


def search(
    workers: SerialWorkers, preset: str = "default", *, pareto: bool = False
) -> SearchResult:
    """Search a little, and check that every failure causes a warning."""
    plan = plan_for(EVALUATOR, preset, seed=3, offspring=6, limits=SearchLimits(generations=3))
    if pareto:
        plan = replace(plan, preset=as_pareto(plan.preset), most=120)
    warnings: list[str] = []
    outcome = Evolution(plan, workers, warn=warnings.append).run(seeds_of(EVALUATOR, KEEP))
    if isinstance(workers, Losing):
        assert len(warnings) >= workers.losses > 0  # equal masks are scored once
        assert all("3 times" in text for text in warnings)
    return outcome


@pytest.mark.parametrize("pareto", [False, True], ids=["one", "front"])
@pytest.mark.parametrize("kind", [BreedTask, ScoreTask, ValidateTask])
@pytest.mark.parametrize("preset", ["default", "black-box"])
def test_the_search_continues_without_failed_candidates(
    kind: type, preset: str, pareto: bool
) -> None:
    """Every individual has a fitness, and the best one a validation score."""
    outcome = search(Losing(EVALUATOR, kind, lambda number: number % 3 == 2), preset, pareto=pareto)
    assert outcome.stopped == "generations"
    assert len(outcome.population) == 4 or kind is ValidateTask
    assert all(isfinite(value) for i in outcome.population for value in i.fitness.values)
    assert outcome.best.key in outcome.validation_scores
    assert all(isfinite(record.validation) for record in outcome.history)


def test_a_generation_may_lose_all_its_children() -> None:
    """Its population stays as it was."""
    outcome = search(Losing(EVALUATOR, BreedTask, lambda number: 6 <= number < 12))
    first, second, third = (record.best for record in outcome.history[1:4])
    assert first == second <= third


@pytest.mark.parametrize("kind", [ScoreTask, ValidateTask])
def test_without_any_candidate_the_search_fails(kind: type) -> None:
    """The error names an option."""
    with pytest.raises(GapruneError, match="workers=1"):
        search(Losing(EVALUATOR, kind, lambda _: True))
