"""The allocation phase: keep counts of the layers alone are searched before their scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from search_cases import Recording, plan_for, random_genes, seeded, seeds_of, tiny_evaluator
from torch import Tensor, nn

from gaprune.config import make_settings
from gaprune.errors import InputError
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evolution.engine import Evolution
from gaprune.evolution.genome import Individual
from gaprune.evolution.gradient import Refinement
from gaprune.evolution.presets import find_preset
from gaprune.evolution.search_plan import (
    DENSITY_SEARCH,
    MIN_DENSITY_OFFSPRING,
    SEARCH,
    SearchLimits,
    SearchPlan,
)
from gaprune.evolution.tasks import BreedTask
from gaprune.evolution.variation import MIN_ANNEALING, Variation, VariationSampler
from gaprune.masks.supermask import layer_counts
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, target_from_module
from gaprune.runs.setup import check_settings, make_plan, resolve_settings

EVALUATOR = tiny_evaluator()
KEEP = 60
STEPS = Refinement(steps=4, learning_rate=0.5, batch=16)
DEEP = nn.Sequential(*(nn.Linear(6, 6) for _ in range(8)))


def plan_of(
    density_search: int, preset: str = "default", generations: int | None = 6
) -> SearchPlan:
    """Return a small plan with an allocation phase."""
    limits = SearchLimits(generations=generations)
    return plan_for(EVALUATOR, preset, limits=limits, density_search=density_search)


@pytest.mark.parametrize("scope", ["allocated", "global"])
@pytest.mark.parametrize("preset", ["default", "black-box"])
def test_the_phase_changes_keep_counts_alone(preset: str, scope: str) -> None:
    """Inside every layer a child ranks the weights as a seed does; budgets are exact."""
    seeds = seeds_of(EVALUATOR, KEEP, scope=scope)
    workers = Recording(EVALUATOR)
    Evolution(plan_of(3, preset), workers).run(seeds)
    broods = workers.broods

    def ranking(scores: torch.Tensor) -> tuple[int, ...]:
        order = [scores[part].argsort(stable=True) for part in EVALUATOR.layout.slices]
        return tuple(torch.cat(order).tolist())

    ranked = {ranking(seed.genes.scores) for seed in seeds}
    held = {seed.genes.scores.numpy().tobytes() for seed in seeds}
    started = {tuple(layer_counts(seed.mask, EVALUATOR.layout)) for seed in seeds}
    found = set()
    for child in (child for brood in broods[:3] for child in brood):
        counts = layer_counts(child.genes.decode(EVALUATOR.layout), EVALUATOR.layout)
        assert sum(counts) == KEEP
        assert min(counts) >= 1
        assert ranking(child.genes.scores) in ranked
        assert scope == "global" or child.genes.scores.numpy().tobytes() in held
        found.add(tuple(counts))
    assert len(found - started) > 20
    assert any(ranking(child.genes.scores) not in ranked for brood in broods[3:] for child in brood)


def test_the_phase_breeds_many_without_gradients_and_is_recorded() -> None:
    """Each child costs one evaluation, the faster half one more; rates and names are told."""
    workers, children = Recording(EVALUATOR), MIN_DENSITY_OFFSPRING
    outcome = Evolution(plan_of(2), workers).run(seeds_of(EVALUATOR, KEEP))
    assert [len(brood) for brood in workers.broods] == [children] * 2 + [8] * 4
    counted = [record.evaluations for record in outcome.history]
    allocated, searched = children + children // 2, 8 * (1 + STEPS.steps) + 4
    assert counted == [8, *(8 + n * allocated for n in (1, 2))] + [
        8 + 2 * allocated + n * searched for n in (1, 2, 3, 4)
    ]
    assert [record.phase for record in outcome.history] == [DENSITY_SEARCH] * 3 + [SEARCH] * 4
    assert outcome.history[2].operator_rates == {
        "crossover": {"none": 1.0},
        "mutation": {"reallocate": 1.0},
    }
    assert set(outcome.history[3].operator_rates["mutation"]) == set(
        find_preset("default").mutations
    )
    best = [record.best for record in outcome.history]
    assert best == sorted(best)
    assert best[2] > best[0]


def test_steps_are_annealed_over_the_search_alone() -> None:
    """Its first step takes the full length, its last the least; before, there are none."""
    plan = plan_of(3, generations=8)
    one = Individual.from_genes(random_genes(EVALUATOR.layout, KEEP), EVALUATOR.layout, "test")
    one.step_scale = 2.0
    density_search, searching = (VariationSampler(plan, phase) for phase in plan.phases)
    for number in range(1, 4):
        recipe, factor = density_search.draw((one, one), number, seeded(number))
        assert recipe.refinement is None
        assert recipe.origin == "reallocate"
        assert factor == 2.0  # the parent's: nothing tells here whether another is better
    lengths: list[float] = []
    for number in range(4, 9):
        recipe, factor = searching.draw((one, one), number, seeded(number))
        steps = recipe.refinement
        assert steps is not None
        assert steps.last_rate is not None
        first, last = (
            length / (STEPS.learning_rate * factor)
            for length in (steps.learning_rate, steps.last_rate)
        )
        assert not lengths or first == pytest.approx(lengths[-1])  # it goes on where it was
        lengths += [first, last]
    assert lengths[0] == pytest.approx(1)
    assert lengths[-1] == pytest.approx(MIN_ANNEALING)
    assert lengths[::2] == sorted(lengths[::2], reverse=True)


def target_of(model: nn.Module) -> Target:
    """Return a target of vectors."""
    return target_from_module(model, inputs=InputOptions(range=(0, 1)))


def resolved(model: nn.Module, **stated: Any) -> tuple[int | None, SearchPlan]:
    """Return what becomes of the setting, and the plan."""
    target, settings = target_of(model), make_settings({"sparsity": 0.5, **stated})
    resolved = resolve_settings(check_settings(settings), target)
    return resolved.settings.density_search, make_plan(target, resolved)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({}, 10),
        ({"preset": "black-box"}, 10),
        ({"scope": "global"}, 10),
        ({"scope": "layer"}, 0),
        ({"preset": "classic"}, 0),
        ({"pareto": True}, 0),
        ({"generations": 0}, 0),
        ({"density_search": 3}, 3),
        ({"density_search": 3, "generations": 0}, 3),
        ({"density_search": 0}, 0),
    ],
)
def test_networks_of_many_layers_are_allocated_first(stated: dict[str, Any], expected: int) -> None:
    """Unless the counts are fixed, or the user says otherwise; the others come on top."""
    density_search, plan = resolved(DEEP, **stated)
    assert density_search == plan.density_search == expected
    generations = plan.phases[-1].length
    assert plan.limits.generations == expected + (generations or 0)
    if "generations" in stated:
        assert generations == stated["generations"]


@pytest.mark.parametrize(
    ("stated", "words"),
    [({"scope": "layer"}, "scope 'layer'"), ({"pareto": True}, "pareto=True")],
)
def test_a_phase_without_free_counts_is_refused(stated: dict[str, Any], words: str) -> None:
    """The message says why and what to do."""
    with pytest.raises(InputError, match=rf"^density_search: 2 .*{words}"):
        resolved(DEEP, density_search=2, **stated)


def lost(evaluator: Evaluator, mask: Tensor) -> list[float]:
    """Return what each layer's outputs lose by a mask, on the dense network's search inputs."""
    values, losses = evaluator.search.inputs, []
    masks = evaluator.layout.split(mask)
    for name, layer in evaluator.network.model.named_children():
        if isinstance(layer, nn.Linear):
            missing = layer.weight * ~masks[f"{name}.weight"]
            losses.append(float((values @ missing.T).square().sum()))
        values = layer(values)
    return losses


@pytest.mark.parametrize("scope", ["allocated", "global"])
def test_swaps_refine_the_layers_whose_counts_change(scope: str) -> None:
    """Counts are those without swaps, other layers stay, and the outputs of these lose less."""
    parent = random_genes(EVALUATOR.layout, KEEP, scope=scope)
    task = BreedTask((parent,), Variation(mutation="reallocate"), seed=5, rung=0)
    refined = replace(task, variation=replace(task.variation, swaps="swaps")).run(EVALUATOR)
    plain = task.run(EVALUATOR).genes.decode(EVALUATOR.layout)
    mask, before = (genes.decode(EVALUATOR.layout) for genes in (refined.genes, parent))
    counts, moved, first = (layer_counts(x, EVALUATOR.layout) for x in (mask, plain, before))
    assert counts == moved != first
    pairs = zip(lost(EVALUATOR, mask), lost(EVALUATOR, plain), counts, first, strict=True)
    for after, unrefined, count, known in pairs:
        assert after < unrefined if count != known else after == unrefined


def test_swaps_refine_one_layer_of_a_copy() -> None:
    """Without another mutation, one layer changes, at its number of weights."""
    parent = random_genes(EVALUATOR.layout, KEEP)
    child = BreedTask((parent,), Variation(swaps="swaps"), seed=5, rung=0).run(EVALUATOR).genes
    mask, before = (genes.decode(EVALUATOR.layout) for genes in (child, parent))
    assert layer_counts(mask, EVALUATOR.layout) == layer_counts(before, EVALUATOR.layout)
    changed = EVALUATOR.layout.split(mask != before)
    assert [bool(layer.any()) for layer in changed.values()].count(True) == 1
    assert sum(lost(EVALUATOR, mask)) < sum(lost(EVALUATOR, before))


def test_a_search_from_swaps_refines_its_children() -> None:
    """`initial_criteria` with `swaps` makes the phase refine; its children say so."""
    _, plan = resolved(DEEP, initial_criteria=["swaps"])
    assert plan.phases[0].preset.swaps == "swaps"
    assert plan.phases[-1].preset.swaps is None
    assert resolved(DEEP)[1].phases[0].preset.swaps is None
    assert Variation(mutation="reallocate", swaps="swaps").origin == "reallocate+swaps"
