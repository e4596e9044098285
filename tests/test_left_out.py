"""A candidate that takes down its workers is left out: the search says so and goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

import pytest
from search_cases import seeds_of, tiny_evaluator

from gaprune.errors import GapruneError
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evolution.engine import Evolution
from gaprune.evolution.gradient import Refinement
from gaprune.evolution.presets import as_pareto, find_preset
from gaprune.evolution.search_plan import SearchLimits, SearchPlan, SearchResult
from gaprune.evolution.tasks import BreedTask, ScoreTask, ValidateTask
from gaprune.workers import FailedTask, SerialWorkers

EVALUATOR = tiny_evaluator()
KEEP = 60
BANG = FailedTask(3, "its process died")


class Losing(SerialWorkers):
    """Workers that lose some of their tasks.

    Args:
        evaluator: what they hold.
        kind: the type of those that are lost.
        which: of that type, tells by their number from 0 on which are.
    """

    def __init__(self, evaluator: Evaluator, kind: type, which: Callable[[int], bool]) -> None:
        super().__init__(evaluator)
        self._kind, self._which = kind, which
        self._seen = -1
        self.losses = 0

    def run(self, tasks: Sequence[Any]) -> list[Any]:
        """Run those that are not lost."""
        results = super().run(tasks)
        for index, task in enumerate(tasks):
            if isinstance(task, self._kind):
                self._seen += 1
                if self._which(self._seen):
                    results[index] = BANG
                    self.losses += 1
        return results


def search(
    workers: SerialWorkers, preset: str = "default", *, pareto: bool = False
) -> SearchResult:
    """Search a little, and check what is said of each loss."""
    chosen = find_preset(preset)
    plan = SearchPlan(
        preset=as_pareto(chosen) if pareto else chosen,
        layout=EVALUATOR.layout,
        seed=3,
        population=4,
        offspring=6,
        refinement=Refinement(2, 0.5, 16) if chosen.gradient else None,
        limits=SearchLimits(generations=4),
        keep=KEEP,
        most=120 if pareto else None,
    )
    said: list[str] = []
    outcome = Evolution(plan, workers, warn=said.append).run(seeds_of(EVALUATOR, KEEP))
    if isinstance(workers, Losing):
        assert len(said) >= workers.losses > 0  # equal masks are scored once, each is told of
        assert all("3 times" in text for text in said)
    return outcome


@pytest.mark.parametrize("pareto", [False, True], ids=["one", "front"])
@pytest.mark.parametrize("kind", [BreedTask, ScoreTask, ValidateTask])
@pytest.mark.parametrize("preset", ["default", "black-box"])
def test_the_search_goes_on_without_it(kind: type, preset: str, pareto: bool) -> None:
    """The population holds candidates that were scored; whoever leads was judged."""
    outcome = search(Losing(EVALUATOR, kind, lambda number: number % 3 == 2), preset, pareto=pareto)
    assert outcome.stopped == "generations"
    assert len(outcome.population) == 4 or kind is ValidateTask  # who cannot be judged leaves it
    assert all(isfinite(value) for one in outcome.population for value in one.fitness.values)
    assert outcome.best.key in outcome.validation_scores
    assert all(isfinite(record.validation) for record in outcome.history)


def test_it_can_be_the_only_child_of_a_generation() -> None:
    """All children of the second generation are lost: the population stays as it was."""
    outcome = search(Losing(EVALUATOR, BreedTask, lambda number: 6 <= number < 12))
    one, two, three = (record.best for record in outcome.history[1:4])
    assert one == two <= three


@pytest.mark.parametrize("kind", [ScoreTask, ValidateTask])
def test_without_any_candidate_the_search_fails(kind: type) -> None:
    """The message says what to do."""
    with pytest.raises(GapruneError, match="--workers 1"):
        search(Losing(EVALUATOR, kind, lambda _: True))
