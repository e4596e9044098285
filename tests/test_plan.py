"""When a search ends because its calibration inputs and the validation inputs part."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from search_cases import seeded, seeds_of, tiny_evaluator

from gaprune.evaluation.evaluator import Evaluator
from gaprune.evolution.engine import Evolution
from gaprune.evolution.presets import find_preset
from gaprune.evolution.search_plan import (
    OVERFIT_DROP,
    SearchLimits,
    SearchPlan,
    SearchResult,
    overfit_generations,
)
from gaprune.evolution.tasks import ValidateTask
from gaprune.workers import SerialWorkers

KEEP = 60


@given(st.lists(st.integers(0, 100).map(lambda percent: percent / 100), max_size=12))
def test_generations_apart_are_counted_from_the_end(validation: list[float]) -> None:
    """As many as trail the best before them; one that does not starts the count anew."""
    apart = [max(validation[: n + 1]) - value >= OVERFIT_DROP for n, value in enumerate(validation)]
    expected = next((n for n, one in enumerate(reversed(apart)) if not one), len(apart))
    assert overfit_generations(validation) == expected


def test_the_limit_of_patience_is_called_validation() -> None:
    """It is met by as many generations apart, and by none where it is not set."""
    now: dict[str, Any] = {"generation": 3, "evaluations": 9, "seconds": 1.0, "stagnant": 0}
    assert SearchLimits(patience=2).reached(**now, overfit=1) is None
    assert SearchLimits(patience=2).reached(**now, overfit=2) == "validation"
    assert SearchLimits().reached(**now, overfit=99) is None


def misled() -> Evaluator:
    """Return an evaluator whose search calibration inputs know another teacher than the validation inputs."""
    evaluator = tiny_evaluator()
    order = torch.randperm(4, generator=seeded(1))
    teacher = evaluator.search.teacher[:, order].roll(1, 1)
    return replace(evaluator, search=evaluator.search._replace(teacher=teacher))


def search(evaluator: Evaluator, patience: int | None) -> SearchResult:
    """Search up to thirty generations."""
    plan = SearchPlan(
        preset=find_preset("black-box"),
        layout=evaluator.layout,
        seed=1,
        population=4,
        offspring=8,
        refinement=None,
        limits=SearchLimits(generations=30, patience=patience),
        keep=KEEP,
    )
    seeds = seeds_of(evaluator, KEEP)
    known = {one.key: ValidateTask(one.bits).run(evaluator) for one in seeds}
    return Evolution(plan, SerialWorkers(evaluator)).run(seeds, known)


@pytest.mark.parametrize("patience", [1, 2, 4])
def test_a_misled_search_stops_when_patience_ends(patience: int) -> None:
    """At the first generation that ends so many apart; without patience it goes on."""
    evaluator = misled()
    free, stopped = search(evaluator, None), search(evaluator, patience)
    assert free.stopped == "generations"
    assert stopped.stopped == "validation"
    validation = [record.validation for record in free.history]
    first = next(
        n for n in range(len(validation)) if overfit_generations(validation[: n + 1]) >= patience
    )
    assert [record.validation for record in stopped.history] == validation[: first + 1]


def test_patience_changes_nothing_where_search_and_validation_agree() -> None:
    """The same masks, generation for generation."""
    evaluator = tiny_evaluator()
    evaluator = replace(evaluator, validation=evaluator.search)
    free, patient = search(evaluator, None), search(evaluator, 3)
    assert free.best.key == patient.best.key
    assert [one.validation for one in free.history] == [one.validation for one in patient.history]
