"""What a run says where its search learns its own calibration inputs, and when that ends the search."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from gaprune.runs.resolve_settings import check_settings, resolve_settings
from search_cases import seeds_of, tiny_evaluator, tiny_model
from torch import nn

from gaprune import InputOptions, prune
from gaprune.callbacks import Observer
from gaprune.config import make_settings
from gaprune.evaluation.evaluator import ValidationScore
from gaprune.evaluation.objectives import OBJECTIVES
from gaprune.evolution.search_plan import SearchResult
from gaprune.models.target import target_from_module
from gaprune.runs.warnings import advise, doubt

EVALUATOR = tiny_evaluator()


def outcome_of(
    validation: list[float], returned: int, stopped: str = "generations"
) -> SearchResult:
    """Return an outcome of individuals with these agreements on the validation inputs; the last one leads."""
    population = seeds_of(EVALUATOR, 60, count=len(validation))
    for place, one in enumerate(population):
        one.fitness.values = (float(place),)
    judged = {
        one.key: ValidationScore(agreement, agreement)
        for one, agreement in zip(population, validation, strict=True)
    }
    return SearchResult(
        best=population[returned],
        validation_score=judged[population[returned].key],
        population=population,
        hall_of_fame=[],
        front=[],
        validation_scores=judged,
        history=[],
        stopped=stopped,
        evaluations=0,
        seconds=0.0,
    )


def test_search_and_validation_that_agree_need_no_advice() -> None:
    """The sparsity is remembered as one where they did not part."""
    agreed: list[float] = []
    found = advise(outcome_of([0.91, 0.9], 0), EVALUATOR, 0.5, agreed, front=False)
    assert found is None
    assert agreed == [0.5]


def test_where_they_part_every_figure_is_told() -> None:
    """The best on the search calibration inputs there and on the validation inputs, what is returned, where it was well."""
    outcome = outcome_of([0.91, 0.8], 0)
    agreed = [0.7, 0.5, 0.95]
    found = advise(outcome, EVALUATOR, 0.9, agreed, front=False)
    there = EVALUATOR.validate(outcome.population[1].mask, EVALUATOR.search).agreement
    assert found == (
        "the search and the validation inputs part at sparsity 0.9: don't go further (at 0.7 they did not "
        f"part); the best on the search calibration inputs agrees {there:.1%} there and 80.0% on the validation inputs, an "
        "earlier one 91.0% on the validation inputs, which is returned; more search on these calibration inputs does harm"
    )
    assert agreed == [0.7, 0.5, 0.95]


def test_a_search_that_the_validation_stopped_is_always_told() -> None:
    """Also where what is returned has the better fitness there, not the better agreement."""
    outcome = outcome_of([0.91, 0.9, 0.89], 1, stopped="validation")
    found = advise(outcome, EVALUATOR, 0.9, [], front=False)
    assert found is not None
    assert "don't go further; the best" in found
    assert (
        "one 91.0% on the validation inputs, and the closest to the dense network there, 90.0%,"
        in found
    )


def test_a_front_and_an_early_interrupt_get_no_advice() -> None:
    """Leaders of many budgets cannot be compared, and without a population nothing is known."""
    outcome = outcome_of([0.9, 0.5], 0)
    assert advise(outcome, EVALUATOR, 0.5, [], front=True) is None
    assert advise(replace(outcome, population=[]), EVALUATOR, 0.5, [], front=False) is None


def sure_of_one(bias: float) -> nn.Module:
    """Return the network 6 → 12 → 8 → 4 with so much added to the first class."""
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("4.bias")[0] += bias
    return model


class Warnings(Observer):
    """Keeps what it is warned of."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warning(self, text: str) -> None:
        """Keep it."""
        self.said.append(text)


@pytest.mark.parametrize("asked", [{"sparsity": 0.5}, {"max_drop": 0.1, "sparsity": 0.6}], ids=str)
def test_a_network_that_names_one_class_is_doubted_once(asked: dict[str, Any]) -> None:
    """On such a validation every mask is as good as the next, and --max-drop holds for all of them."""
    heard, shown = Warnings(), InputOptions(range=(0, 1))
    prune(sure_of_one(1e4), inputs=shown, observer=heard, method="magnitude", **asked)
    (said,) = heard.said
    assert said.startswith(
        "the dense network names one class (0) on 100.0% of the validation inputs"
    )
    assert "--validation" in said


def test_doubt_begins_where_99_of_100_are_one_class() -> None:
    """Below it the validation inputs tells networks apart; outputs that are no classes are not asked."""
    classes = torch.tensor([3] * 99 + [1])
    teacher = nn.functional.one_hot(classes, 4).float()
    validation = EVALUATOR.validation._replace(teacher=teacher)
    said = doubt(replace(EVALUATOR, validation=validation))
    assert said is not None
    assert "names one class (3) on 99.0% of the validation inputs" in said
    rest = validation._replace(teacher=teacher[1:])
    assert doubt(replace(EVALUATOR, validation=rest)) is None
    objective = OBJECTIVES["relative-error"]
    assert doubt(replace(EVALUATOR, validation=validation, objective=objective)) is None


@pytest.mark.parametrize(
    ("changes", "patience"),
    [
        ({}, None),
        ({"calibration": ("noise",)}, None),
        ({"calibration": ("inversion",), "method": "lamp"}, None),
        ({"calibration": ("procedural", "impressions")}, 2),
        ({"calibration": ("inversion",)}, 2),
        ({"calibration": ("inversion",), "patience": 7}, 7),
        ({"calibration": ("inversion",), "pareto": True}, None),
        ({"patience": 3}, 3),
    ],
    ids=str,
)
def test_patience_is_short_where_calibration_are_optimised(
    changes: dict[str, Any], patience: int | None
) -> None:
    """Two generations there, none elsewhere, and what is stated goes before both."""
    settings = make_settings({"sparsity": 0.5, **changes})
    target = target_from_module(tiny_model(), inputs=InputOptions(range=(0, 1)))
    assert resolve_settings(settings, check_settings(settings), target).patience == patience
