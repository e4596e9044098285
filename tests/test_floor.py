"""The floor: no layer keeps less than this fraction, at the exact total."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
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
from gaprune.choices import SCOPES
from gaprune.errors import InputError
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evolution.engine import Evolution
from gaprune.evolution.genome import Genes, Individual, align, seed_genes
from gaprune.evolution.gradient import Refinement
from gaprune.evolution.operators import CROSSOVERS, MUTATIONS
from gaprune.evolution.presets import find_preset
from gaprune.evolution.search_plan import SearchLimits, SearchPlan
from gaprune.evolution.seeding import kaiming_population
from gaprune.masks.budget import apportion, keep_total
from gaprune.masks.supermask import Layout, global_mask, layer_counts

FEW = settings(max_examples=40)
FLOORS = st.integers(0, 999).map(lambda n: n / 1000)
OPERATORS = [pytest.param(name, id=name) for name in [*MUTATIONS, *CROSSOVERS]]
KEEP = 60


def lowest(size: int, floor: float) -> int:
    """Return the smallest whole number from 1 that is no less than the floor."""
    part = Fraction(str(floor))
    return next(n for n in range(1, size + 1) if n >= part * size)


def assert_counts(counts: Sequence[int], layout: Layout, keep: int) -> None:
    """Check the exact total, and that each layer is between its floor and its size."""
    assert sum(counts) == keep
    for count, size in zip(counts, layout.sizes, strict=True):
        assert lowest(size, layout.floor) <= count <= size


@st.composite
def floored(draw: st.DrawFn) -> tuple[Layout, int]:
    """A layout of up to four layers with a floor, and a total that it allows."""
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    layout = layout_of(sizes).with_floor(draw(FLOORS))
    return layout, draw(st.integers(sum(layout.min_counts), layout.total))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=5), FLOORS)
def test_the_minimum_of_a_layer_is_its_floor_rounded_up(sizes: list[int], floor: float) -> None:
    """At least one weight; 0.1 is exactly a tenth."""
    layout = layout_of(sizes).with_floor(floor)
    assert layout.min_counts == tuple(lowest(size, floor) for size in sizes)
    assert layout_of(sizes).min_counts == (1,) * len(sizes)
    assert layout_of([30, 31]).with_floor(0.1).min_counts == (3, 4)


@given(floored(), st.data())
def test_a_global_mask_departs_from_the_ranking_only_for_a_floor(
    case: tuple[Layout, int], data: st.DataObject
) -> None:
    """A dropped weight beats a kept one only in layers at their floor."""
    layout, keep = case
    scores = data.draw(score_vectors(layout.total))
    mask = global_mask(scores, layout, keep)
    counts = layer_counts(mask, layout)
    assert_counts(counts, layout, keep)
    for layer, (part, count) in enumerate(zip(layout.slices, counts, strict=True)):
        worst = scores[part][mask[part]].min()
        for other, other_part in enumerate(layout.slices):
            if layer == other or count > layout.min_counts[layer]:
                dropped = scores[other_part][~mask[other_part]]
                assert len(dropped) == 0 or dropped.max() <= worst


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
    with pytest.raises(InputError, match=r"^floor: .*floor=") as caught:
        keep_total(bound, sparsity)
    offered = float(str(caught.value).partition("floor=")[2].split()[0])
    assert offered < floor
    assert keep_total(layout.with_floor(offered), sparsity) == keep
    with pytest.raises(InputError, match=r"^floor: "):
        keep_total(layout.with_floor(round(offered + 0.001, 3)), sparsity)


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
def test_every_operator_respects_the_floor(
    name: str, case: tuple[Layout, Genes, Genes, int]
) -> None:
    """For children and grandchildren; `align` changes no count."""
    layout, a, b, seed = case
    generator = seeded(seed)
    for _ in range(2):
        for genes in (a, b):
            counts = layer_counts(genes.decode(layout), layout)
            assert_counts(counts, layout, genes.keep)
            assert layer_counts(align(genes, layout).decode(layout), layout) == counts
        if name in MUTATIONS:
            a, b = (MUTATIONS[name](genes, layout, generator) for genes in (a, b))
        else:
            a, b = CROSSOVERS[name](a, b, layout, generator)


def evaluator_with_floor(floor: float, objective: str = "kl") -> Evaluator:
    """Return the tiny evaluator on a layout with a floor."""
    evaluator = tiny_evaluator(objective, labels=objective == "accuracy")
    return replace(evaluator, layout=evaluator.layout.with_floor(floor))


@pytest.mark.parametrize("scope", ["allocated", "global"])
@pytest.mark.parametrize("preset", ["default", "black-box", "classic"])
def test_every_child_of_a_search_respects_the_floor(preset: str, scope: str) -> None:
    """In every generation, and in the density search."""
    evaluator = evaluator_with_floor(0.22, "accuracy" if preset == "classic" else "kl")
    layout, chosen = evaluator.layout, find_preset(preset)
    plan = SearchPlan(
        preset=chosen,
        layout=layout,
        seed=1,
        population=4,
        offspring=8,
        refinement=Refinement(2, 3.0, 16) if chosen.gradient else None,
        limits=SearchLimits(generations=3),
        keep=KEEP,
        density_search=2,
    )
    seeds = seeds_of(evaluator, KEEP, scope=scope)
    if preset == "classic":
        population = kaiming_population(layout, 1 - KEEP / layout.total, scope, 4, seeded(2))
        seeds = [Individual.from_genes(genes, layout, "kaiming") for genes in population]
    with Recording(evaluator) as workers:
        outcome = Evolution(plan, workers).run(seeds)
    assert len(workers.bred) == 2 * 16 + 8
    # Only the mask of the best individual: former leaders have no genes.
    for mask in (*(genes.decode(layout) for genes in workers.bred), outcome.best.mask):
        assert_counts(layer_counts(mask, layout), layout, KEEP)


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
def test_every_layer_of_a_pruned_network_keeps_its_floor(scope: str) -> None:
    """In every scope."""
    result = prune(tiny_model(), sparsity=0.75, floor=0.2, scope=scope, **SMALL)
    assert result.kept == 50
    assert all(layer.kept >= 0.2 * layer.total for layer in result.layers)
    assert result.settings["floor"] == 0.2


@pytest.mark.parametrize(
    ("floor", "message"), [(-0.1, ""), (1.0, ""), ("much", ""), (0.3, "0.3 .*61 ")]
)
def test_an_impossible_floor_is_refused(floor: object, message: str) -> None:
    """Outside 0 to 1, or more than the sparsity keeps."""
    with pytest.raises(InputError, match=f"^floor: {message}"):
        prune(tiny_model(), sparsity=0.75, floor=floor, **SMALL)
