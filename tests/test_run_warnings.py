"""Warnings of a run: a search that overfits, and validation inputs that say little."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from search_cases import seeds_of, tiny_evaluator, tiny_model
from torch import Tensor, nn

from gaprune import GapruneWarning, InputOptions, prune
from gaprune.callbacks import Callbacks
from gaprune.config import make_settings
from gaprune.evaluation.evaluator import ValidationScore
from gaprune.evaluation.objectives import OBJECTIVES
from gaprune.evolution.search_plan import SearchResult
from gaprune.models.fresh_weights import fresh_layers
from gaprune.models.target import target_from_module
from gaprune.models.zoo import ZOO, load_zoo_network
from gaprune.records import Provenance
from gaprune.runs.setup import check_settings, resolve_settings
from gaprune.runs.warnings import (
    baseline_warning,
    domain_warning,
    overfitting_warning,
    validation_warnings,
)

EVALUATOR = tiny_evaluator()


def search_of(validation: list[float], returned: int, stopped: str = "generations") -> SearchResult:
    """Return a search of individuals with these agreements on the validation inputs.

    The last one is best on the calibration inputs.
    """
    population = seeds_of(EVALUATOR, 60, count=len(validation))
    for index, individual in enumerate(population):
        individual.fitness.values = (float(index),)
    scores = {
        individual.key: ValidationScore(agreement, agreement)
        for individual, agreement in zip(population, validation, strict=True)
    }
    return SearchResult(
        best=population[returned],
        validation_score=scores[population[returned].key],
        population=population,
        front=[],
        validation_scores=scores,
        history=[],
        stopped=stopped,
        evaluations=0,
        seconds=0.0,
    )


def test_a_search_without_overfitting_gives_no_warning() -> None:
    """Its sparsity is remembered."""
    agreed: list[float] = []
    search = search_of([0.91, 0.9], 0)
    assert overfitting_warning(search, EVALUATOR, 0.5, agreed, front=False) is None
    assert agreed == [0.5]


def test_the_overfitting_warning_has_all_figures() -> None:
    """Agreement on both kinds of inputs, the best earlier one, and a sparsity that was fine."""
    search, agreed = search_of([0.91, 0.8], 0), [0.7, 0.5, 0.95]
    warning = overfitting_warning(search, EVALUATOR, 0.9, agreed, front=False)
    leader = EVALUATOR.validate(search.population[1].mask, EVALUATOR.search).agreement
    assert warning is not None
    for figure in ("0.9", "0.7", f"{leader:.1%}", "80.0%", "91.0%"):
        assert figure in warning
    assert agreed == [0.7, 0.5, 0.95]


def test_a_search_that_patience_stopped_always_gives_the_warning() -> None:
    """Also if the returned mask has the better fitness, not the better agreement."""
    search = search_of([0.91, 0.9, 0.89], 1, stopped="validation")
    warning = overfitting_warning(search, EVALUATOR, 0.9, [], front=False)
    assert warning is not None
    assert "91.0%" in warning
    assert "90.0%" in warning


def test_a_front_and_an_early_interrupt_give_no_warning() -> None:
    """The best of many budgets cannot be compared; without a population nothing is known."""
    search = search_of([0.9, 0.5], 0)
    assert overfitting_warning(search, EVALUATOR, 0.5, [], front=True) is None
    empty = replace(search, population=[])
    assert overfitting_warning(empty, EVALUATOR, 0.5, [], front=False) is None


@pytest.mark.parametrize("asked", [{"sparsity": 0.5}, {"max_drop": 0.1, "sparsity": 0.6}], ids=str)
def test_a_network_that_predicts_one_class_gives_one_warning(asked: dict[str, Any]) -> None:
    """On its validation inputs every mask agrees, and is within any `max_drop`."""
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("4.bias")[0] += 1e4
    warnings: list[str] = []
    observer = Callbacks(on_warning=warnings.append)
    inputs = InputOptions(range=(0, 1))
    prune(model, inputs=inputs, observer=observer, method="magnitude", **asked)
    (warning,) = warnings
    assert "(0) on 100.0%" in warning
    assert "validation=" in warning


def test_one_class_counts_from_99_percent_on() -> None:
    """Below that there is no warning, nor for outputs that are no classes."""
    teacher = nn.functional.one_hot(torch.tensor([3] * 99 + [1]), 4).float()
    validation = EVALUATOR.validation._replace(teacher=teacher)
    (warning,) = validation_warnings(replace(EVALUATOR, validation=validation))
    assert "(3) on 99.0%" in warning
    fewer = validation._replace(teacher=teacher[1:])
    assert not [*validation_warnings(replace(EVALUATOR, validation=fewer))]
    objective = OBJECTIVES["relative-error"]
    numbers = replace(EVALUATOR, validation=validation, objective=objective)
    assert not [*validation_warnings(numbers)]


class Branches(nn.Module):
    """Uses an embedding, a standardised weight and one of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.standardised = nn.Embedding(9, 6), nn.Linear(6, 6)
        self.head, self.unused = nn.Linear(6, 3), nn.Linear(6, 30)

    def forward(self, ids: Tensor) -> Tensor:
        weight = self.standardised.weight
        hidden = self.embedding(ids).mean(1) @ (weight - weight.mean(1, keepdim=True)).T
        logits: Tensor = self.head(hidden.relu())
        return logits


def test_weights_that_nothing_uses_give_a_warning() -> None:
    """Removing them would make the others less sparse than the result says."""
    options: dict[str, Any] = {"inputs": InputOptions(shape=(5,)), "method": "magnitude"}
    options |= {"sparsity": 0.5, "progress": False, "prune_also": "embedding.weight"}
    with pytest.warns(GapruneWarning, match=r"180 of 288 .*\(unused\.weight\).*ignore="):
        prune(Branches(), **options)
    with warnings.catch_warnings(record=True) as issued:
        prune(Branches(), ignore="unused", **options)
    assert not any("no part" in str(warning.message) for warning in issued)


@pytest.mark.parametrize(
    ("changes", "patience"),
    [
        ({"calibration": ("procedural",)}, None),
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
def test_patience_is_two_with_optimised_calibration_inputs(
    changes: dict[str, Any], patience: int | None
) -> None:
    """There is none otherwise; a stated one takes precedence."""
    settings = make_settings({"sparsity": 0.5, **changes})
    target = target_from_module(tiny_model(), inputs=InputOptions(range=(0, 1)))
    assert resolve_settings(check_settings(settings), target).settings.patience == patience


@pytest.mark.parametrize("name", ZOO)
def test_untrained_networks_are_noticed_and_trained_ones_are_not(name: str) -> None:
    """Every bundled network, as its factory makes it and with its weights."""
    torch.manual_seed(0)
    fresh = ZOO[name].factory()
    assert fresh_layers(load_zoo_network(name)) is None
    layers = fresh_layers(fresh)
    assert layers is not None
    assert layers[0] == layers[1] >= 3


@pytest.mark.parametrize("initialise", [nn.init.xavier_uniform_, nn.init.kaiming_normal_, None])
def test_one_trained_scale_is_enough_to_be_trained(
    initialise: Callable[[torch.Tensor], object] | None,
) -> None:
    """Normalisations with other weights than 1 contradict what the matrices look like."""
    torch.manual_seed(0)
    linear, norm = nn.Linear(60, 40), nn.LayerNorm(40)
    if initialise is not None:
        initialise(linear.weight)
    network = nn.Sequential(linear, norm)
    assert fresh_layers(network) == (1, 1)
    with torch.no_grad():
        norm.weight[3] += 0.1
    assert fresh_layers(network) is None


def test_a_random_mask_that_is_the_best_is_reported() -> None:
    """Not where it is the only one, or where another is as good."""
    assert baseline_warning({"random": 0.6, "magnitude": 0.5}) is not None
    assert baseline_warning({"random": 0.6}) is None
    assert baseline_warning({"random": 0.6, "magnitude": 0.6}) is None
    assert baseline_warning({"magnitude": 0.1}) is None


@pytest.mark.parametrize(
    ("fit", "method", "warned"),
    [
        (None, "evolved", False),
        (0.9, "evolved", False),
        (0.7, "evolved", False),
        (0.4, "evolved", True),
        (0.4, "lamp-wanda", True),
        (0.4, "lamp", False),
    ],
)
def test_inputs_far_from_the_domain_are_warned_about(
    fit: float | None, method: str, *, warned: bool
) -> None:
    """The warning states the figure; networks that are no classifiers have none.

    Criteria of the weights alone do not depend on the inputs.
    """
    provenance = Provenance("procedural", (), 1, True, "", "", 1, "", domain_fit=fit)
    text = domain_warning(provenance, method)
    assert (text is not None) == warned
    assert text is None or f"{fit:.2f}" in text
