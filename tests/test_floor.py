"""A floor per layer: whatever decides keep counts, no layer falls below it, at the exact total."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from search_cases import (
    Recording,
    layout_of,
    score_vectors,
    seeded,
    seeds_of,
    tiny_evaluator,
    tiny_model,
)

from gaprune import InputOptions, prune
from gaprune.comparison.methods.edge_popup import EdgePopupOptions, edge_popup
from gaprune.errors import InputError
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evolution.engine import Evolution
from gaprune.evolution.genome import Genes, Individual, align, seed_genes
from gaprune.evolution.gradient import Refinement, refine
from gaprune.evolution.operators import CROSSOVERS, MUTATIONS
from gaprune.evolution.presets import find_preset
from gaprune.evolution.search_plan import SearchLimits, SearchPlan
from gaprune.evolution.seeding import kaiming_population
from gaprune.masks.budget import SCOPES, apportion, keep_total, uniform_counts
from gaprune.masks.supermask import Layout, global_mask, layer_counts

FEW = settings(max_examples=40)
FLOORS = st.integers(0, 999).map(lambda n: n / 1000)
OPERATORS = [pytest.param(name, id=name) for name in [*MUTATIONS, *CROSSOVERS]]
KEEP = 60


def lowest(size: int, floor: float) -> int:
    """Return the largest whole number that is no more than the floor, or 1."""
    part = Fraction(str(floor))
    return max(n for n in range(size + 1) if n == 1 or n <= part * size)


def assert_held(kept: Sequence[int], layout: Layout, keep: int) -> None:
    """Check the exact total, and each layer between its floor and its size."""
    assert sum(kept) == keep
    for count, size in zip(kept, layout.sizes, strict=True):
        assert lowest(size, layout.floor) <= count <= size


@st.composite
def floored(draw: st.DrawFn) -> tuple[Layout, int]:
    """A layout of up to four layers with a floor, and a total that it allows."""
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    layout = layout_of(sizes).with_floor(draw(FLOORS))
    return layout, draw(st.integers(sum(layout.min_counts), layout.total))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=5), FLOORS)
def test_the_least_of_a_layer_is_its_floor_rounded_down(sizes: list[int], floor: float) -> None:
    """But never less than one weight; a floor of 0.1 is a tenth, not the binary number below."""
    layout = layout_of(sizes).with_floor(floor)
    assert layout.min_counts == tuple(lowest(size, floor) for size in sizes)
    assert layout_of(sizes).min_counts == (1,) * len(sizes)
    assert layout_of([30]).with_floor(0.1).min_counts == (3,)


@given(floored(), st.data())
def test_a_global_mask_departs_from_the_ranking_only_for_a_floor(
    case: tuple[Layout, int], data: st.DataObject
) -> None:
    """A dropped weight scores more than a kept one only where that one holds its layer's floor."""
    layout, keep = case
    scores = data.draw(score_vectors(layout.total))
    mask = global_mask(scores, layout, keep)
    kept = layer_counts(mask, layout)
    assert_held(kept, layout, keep)
    for own, (part, count) in enumerate(zip(layout.slices, kept, strict=True)):
        worst = scores[part][mask[part]].min()
        for other, there in enumerate(layout.slices):
            if own == other or count > layout.min_counts[own]:
                dropped = scores[there][~mask[there]]
                assert len(dropped) == 0 or dropped.max() <= worst


def test_a_floor_above_a_global_budget_is_refused() -> None:
    """Half of each of three layers is more than four weights."""
    with pytest.raises(InputError, match=r"^keep: .* 6, .*0\.5"):
        global_mask(torch.arange(12.0), layout_of([4, 4, 4]).with_floor(0.5), 4)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=6), FLOORS, st.integers(1, 999))
def test_a_floor_above_the_density_is_refused_with_advice_that_works(
    sizes: list[int], floor: float, permille: int
) -> None:
    """Up to the density every floor fits; above, the one that the message offers does."""
    layout, sparsity = layout_of(sizes), permille / 1000
    try:
        keep = keep_total(layout, sparsity)
    except InputError:
        assume(False)
    bound = layout.with_floor(floor)
    if sum(bound.min_counts) <= keep:
        assert keep_total(bound, sparsity) == keep
        return
    assert any(lowest(size, floor) > 1 for size in sizes)
    with pytest.raises(InputError, match=r"^floor: .*--floor") as caught:
        keep_total(bound, sparsity)
    offered = float(str(caught.value).partition("--floor ")[2].split()[0])
    assert offered < floor
    assert keep_total(layout.with_floor(offered), sparsity) == keep
    with pytest.raises(InputError, match=r"^floor: "):
        keep_total(layout.with_floor(round(offered + 0.001, 3)), sparsity)


@given(st.lists(st.integers(4, 300), min_size=1, max_size=6), st.integers(1, 749), FLOORS)
def test_equal_densities_hold_every_floor_below_them(
    sizes: list[int], permille: int, floor: float
) -> None:
    """So scope `layer` takes the same counts with such a floor as without."""
    sparsity = permille / 1000
    assume(Fraction(str(floor)) <= 1 - Fraction(str(sparsity)))
    layout = layout_of(sizes).with_floor(floor)
    counts = uniform_counts(layout, sparsity)
    assert_held(counts, layout, keep_total(layout, sparsity))


@given(floored(), st.data())
def test_apportioned_counts_hold_the_floor(case: tuple[Layout, int], data: st.DataObject) -> None:
    """Whatever the shares; without a floor one weight each."""
    layout, keep = case
    share = st.floats(min_value=-5, allow_nan=False)
    shares = data.draw(st.lists(share, min_size=len(layout.sizes), max_size=len(layout.sizes)))
    assert_held(apportion(shares, keep, layout.sizes, layout.min_counts), layout, keep)


@st.composite
def parents(draw: st.DrawFn) -> tuple[Layout, Genes, Genes, int]:
    """A layout with a floor, two genes of one scope that hold it, and a seed."""
    layout, keep = draw(floored())
    scope = draw(st.sampled_from(sorted(SCOPES)))
    uniform = apportion([keep / layout.total * n for n in layout.sizes], keep, layout.sizes)
    uniform = apportion(uniform, keep, layout.sizes, layout.min_counts)
    made = []
    for _ in range(2):
        scores = draw(score_vectors(layout.total))
        given_counts = scope == "layer" or draw(st.booleans())
        genes = seed_genes(scores, layout, keep, scope, uniform if given_counts else None)
        made.append(replace(genes, absolute=draw(st.booleans())))
    return layout, made[0], made[1], draw(st.integers(0, 2**32))


@pytest.mark.parametrize("name", OPERATORS)
@FEW
@given(case=parents())
def test_every_operator_holds_the_floor(name: str, case: tuple[Layout, Genes, Genes, int]) -> None:
    """Of seeds, children and grandchildren; their alignment changes no count."""
    layout, a, b, seed = case
    generator = seeded(seed)
    for _ in range(2):
        for one in (a, b):
            kept = layer_counts(one.decode(layout), layout)
            assert_held(kept, layout, one.keep)
            assert layer_counts(align(one, layout).decode(layout), layout) == kept
        if name in MUTATIONS:
            a, b = (MUTATIONS[name](one, layout, generator) for one in (a, b))
        else:
            a, b = CROSSOVERS[name](a, b, layout, generator)


def evaluator_with_floor(floor: float, objective: str = "kl") -> Evaluator:
    """Return the tiny evaluator on a layout with a floor."""
    evaluator = tiny_evaluator(objective, labels=objective == "accuracy")
    return replace(evaluator, layout=evaluator.layout.with_floor(floor))


@pytest.mark.parametrize("scope", ["allocated", "global"])
def test_gradient_steps_hold_the_floor(scope: str) -> None:
    """Long steps would take nearly all of a layer without one."""
    steps = Refinement(steps=12, learning_rate=3.0, batch=16)
    kept = {}
    for floor in (0.0, 0.28):
        evaluator = evaluator_with_floor(floor)
        magnitude = seeds_of(evaluator, KEEP, 1, scope)[0].genes
        genes = refine(magnitude, evaluator, steps, seeded(4))
        kept[floor] = layer_counts(genes.decode(evaluator.layout), evaluator.layout)
        assert_held(kept[floor], evaluator.layout, KEEP)
    assert any(n < lowest(size, 0.28) for n, size in zip(kept[0.0], (72, 96, 32), strict=True))


def test_edge_popup_holds_the_floor() -> None:
    """Its scores are cut like those of the search."""
    evaluator = evaluator_with_floor(0.28)
    how, sparsity = EdgePopupOptions(steps=20, batch=16), 1 - KEEP / evaluator.layout.total
    kept = layer_counts(edge_popup(evaluator, sparsity, how, seeded(4)), evaluator.layout)
    assert_held(kept, evaluator.layout, KEEP)
    free = layer_counts(
        edge_popup(evaluator_with_floor(0.0), sparsity, how, seeded(4)), evaluator.layout
    )
    assert any(n < lowest(size, 0.28) for n, size in zip(free, evaluator.layout.sizes, strict=True))


@pytest.mark.parametrize("scope", ["allocated", "global"])
@pytest.mark.parametrize("preset", ["default", "black-box", "classic"])
def test_a_whole_search_holds_the_floor(preset: str, scope: str) -> None:
    """Every child of every generation, in the allocation phase too."""
    evaluator = evaluator_with_floor(0.22, "accuracy" if preset == "classic" else "kl")
    layout, chosen = evaluator.layout, find_preset(preset)
    plan = SearchPlan(
        preset=chosen,
        layout=layout,
        seed=1,
        population=4,
        offspring=8,
        refinement=Refinement(4, 3.0, 16) if chosen.gradient else None,
        limits=SearchLimits(generations=5),
        keep=KEEP,
        density_search=2,
    )
    seeds = seeds_of(evaluator, KEEP, scope=scope)
    if preset == "classic":
        found = kaiming_population(layout, 1 - KEEP / layout.total, scope, 4, seeded(2))
        seeds = [Individual.from_genes(genes, layout, "kaiming") for genes in found]
    with Recording(evaluator) as workers:
        outcome = Evolution(plan, workers).run(seeds)
    assert len(workers.bred) == 2 * 16 + 3 * 8
    for genes in (*workers.bred, outcome.best.genes):
        assert_held(layer_counts(genes.decode(layout), layout), layout, KEEP)


SMALL: dict[str, Any] = {
    "inputs": InputOptions(range=(0, 1)),
    "generations": 1,
    "steps": 2,
    "batch": 8,
    "calibration_count": 16,
    "validation_count": 16,
    "impressions": 8,
}


@pytest.mark.parametrize("scope", sorted(SCOPES))
def test_a_pruned_network_keeps_the_floor_of_every_layer(scope: str) -> None:
    """From the setting to the masks."""
    result = prune(tiny_model(), sparsity=0.75, floor=0.2, scope=scope, **SMALL)
    assert result.kept == 50
    assert all(layer.kept >= 0.2 * layer.total - 1 for layer in result.layers)
    assert result.settings["floor"] == 0.2


@pytest.mark.parametrize("floor", [-0.1, 1.0, "much"])
def test_a_floor_outside_0_to_1_is_refused(floor: object) -> None:
    """The message says what it is."""
    with pytest.raises(InputError, match=r"^floor: "):
        prune(tiny_model(), sparsity=0.75, floor=floor, **SMALL)


def test_a_floor_that_does_not_fit_the_sparsity_is_refused_at_once() -> None:
    """Before any calibration input is made."""
    with pytest.raises(InputError, match=r"^floor: 0.3 .*58 "):
        prune(tiny_model(), sparsity=0.75, floor=0.3, **SMALL)
