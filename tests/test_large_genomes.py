"""Genes of large networks: half precision, the same masks, shared where nothing changed."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import layout_of, layouts_with_counts, run_to_bits, score_vectors, seeded
from torch import Tensor, nn

from gaprune.calibration.generators.mixture import GeneratorMixture
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evaluation.forward_modes import TeacherBatch
from gaprune.evaluation.objectives import OBJECTIVES
from gaprune.evolution.engine import Evolution
from gaprune.evolution.genome import (
    LARGE,
    Genes,
    Individual,
    rank,
    score_dtype,
    seed_genes,
    to_float16,
    to_storage,
)
from gaprune.evolution.gradient import Refinement
from gaprune.evolution.operators import MUTATIONS
from gaprune.evolution.presets import find_preset
from gaprune.evolution.search_plan import SearchLimits, SearchPlan
from gaprune.evolution.search_state import SearchState
from gaprune.evolution.seeding import kaiming_population
from gaprune.evolution.tasks import BreedTask
from gaprune.evolution.variation import Variation
from gaprune.io.checkpoints import read_checkpoint, write_checkpoint
from gaprune.masks.supermask import Layout
from gaprune.models.forward import batched_forward
from gaprune.models.input_spec import InputSpec
from gaprune.models.network import DenseNetwork
from gaprune.workers import SerialWorkers, WorkerOptions
from gaprune.workers.ray_pool import RayWorkers

LAST = 2.0**-24  # the least float16 above 0
FEW = settings(max_examples=60)


@st.composite
def genes_of_any_kind(draw: st.DrawFn) -> tuple[Layout, Genes]:
    """Genes of every scope, ranked by value or size; a floor may lift what starved layers keep."""
    layout, counts = draw(layouts_with_counts())
    layout = layout.with_floor(draw(st.sampled_from([0.0, 0.3])))
    counts = tuple(map(max, counts, layout.min_counts))
    kind = draw(st.sampled_from(["allocated", "global", "layer"]))
    scores = draw(score_vectors(layout.total))
    shared = None if kind == "global" else counts
    absolute = draw(st.booleans())
    return layout, Genes(scores, shared, sum(counts), kind == "layer", absolute)


@given(genes_of_any_kind())
def test_half_precision_expresses_the_same_mask(case: tuple[Layout, Genes]) -> None:
    """To the bit: kept scores are above 0, dropped ones are not, also seen by the operators."""
    layout, genes = case
    mask, before = genes.decode(layout), genes.scores.clone()
    small = to_float16(genes, layout)
    assert small.scores.dtype == torch.float16
    assert torch.equal(small.scores > 0, mask)
    assert torch.equal(small.decode(layout), mask)
    assert torch.equal(small.as_float32().decode(layout), mask)
    assert replace(small, scores=before, absolute=genes.absolute).__dict__ == {
        **genes.__dict__,
        "scores": before,
    }
    assert torch.equal(genes.scores, before)


@given(genes_of_any_kind(), st.data())
def test_half_precision_has_one_meaning_under_any_budget(
    case: tuple[Layout, Genes], data: st.DataObject
) -> None:
    """With other counts, or another total, it expresses what its float32 values express."""
    layout, genes = case
    small = to_float16(genes, layout)
    counts = tuple(
        data.draw(st.integers(low, size))
        for low, size in zip(layout.min_counts, layout.sizes, strict=True)
    )
    shared = data.draw(st.sampled_from([None, counts]))
    other = replace(small, counts=shared, keep=sum(counts))
    assert torch.equal(other.decode(layout), other.as_float32().decode(layout))
    assert int(other.decode(layout).count_nonzero()) == sum(counts)


@FEW
@given(st.integers(0, 2**32), st.sampled_from(["allocated", "global", "layer"]))
def test_the_distance_from_the_cut_is_rounded_and_nothing_else(seed: int, scope: str) -> None:
    """Differences in a layer come back within 2⁻¹¹ of the larger distance, or the last place."""
    layout = layout_of([400, 100, 500])
    scores = rank(torch.rand(layout.total, generator=seeded(seed)))
    shared = None if scope == "global" else (40, 10, 50)
    genes = Genes(scores, shared, 100, scope == "layer")
    small = to_float16(genes, layout).scores.double()
    shifts = []
    for part in layout.slices:
        shift = scores[part].double() - small[part]  # the cut, but for rounding
        bound = small[part].abs() * 2.0**-10 + 2 * LAST
        shifts.append((float((shift - bound).max()), float((shift + bound).min())))
        assert shifts[-1][0] <= shifts[-1][1]
    if scope == "global":  # one cut for all layers
        assert max(low for low, _ in shifts) <= min(high for _, high in shifts)


def test_only_large_networks_are_held_in_half_precision() -> None:
    """Up to the threshold, and where the size of a score counts, genes stay the very same."""
    small, large = layout_of([LARGE]), layout_of([LARGE, 20])
    assert score_dtype(small) == torch.float32
    assert score_dtype(large) == torch.float16
    genes = Genes(torch.linspace(-1, 1, LARGE), (100,), 100)
    assert to_storage(genes, small) is genes
    one = next(kaiming_population(large, 0.9, "layer", 1, seeded()))
    assert one.scores.dtype == torch.float32
    assert to_storage(one, large) is one
    found = to_storage(replace(one, absolute=False), large)
    assert found.scores.dtype == torch.float16
    assert to_storage(found, large) is found


@pytest.mark.parametrize("scope", ["allocated", "global", "layer"])
def test_seeds_of_large_networks_are_halves_of_the_same_mask(scope: str) -> None:
    """From criteria, or from a mask alone that was remembered."""
    layout = layout_of([LARGE, 1000, 20])
    scores = torch.rand(layout.total, generator=seeded(1))
    uniform = (LARGE // 10, 100, 2) if scope == "layer" else None
    keep = LARGE // 10 + 102
    found = seed_genes(scores, layout, keep, scope, uniform)
    plain = Genes(scores, uniform, keep).decode(layout)
    assert found.scores.dtype == torch.float16
    assert torch.equal(found.decode(layout), plain)
    individual = Individual.from_genes(found, layout, "made")
    assert torch.equal(individual.mask, plain)


@cache
def large_evaluator() -> Evaluator:
    """Return an evaluator of a network 8 → 2048 → 2048 → 4, just above `LARGE` weights."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = [nn.Linear(8, 2048), nn.Tanh(), nn.Linear(2048, 2048), nn.Tanh()]
        model = nn.Sequential(*layers, nn.Linear(2048, 4)).eval().requires_grad_(False)
    weights = {name: p.detach() for name, p in model.named_parameters() if p.ndim > 1}
    layout = Layout.of(weights)
    assert layout.total > LARGE
    first, second = (torch.rand(16, 8, generator=seeded(seed)) for seed in (1, 2))
    return Evaluator(
        network=DenseNetwork(model, weights, layout, InputSpec((8,), "vector")),
        layout=layout,
        objective=OBJECTIVES["kl"],
        search=TeacherBatch(first, batched_forward(model, first), None),
        validation=TeacherBatch(second, batched_forward(model, second), None),
        mixture=GeneratorMixture(InputSpec((8,), "vector"), {"uniform": 1.0}, torch.float32),
        gradient_inputs=None,
        gradient_share=0.0,
        rungs=(4, 16),
    )


@cache
def large_genes(seed: int, scope: str = "allocated") -> Genes:
    """Return genes at a tenth of the weights: magnitude with a little noise."""
    evaluator = large_evaluator()
    sizes = evaluator.layout.flatten(evaluator.network.weights).abs()
    scores = sizes + 0.01 * torch.rand(len(sizes), generator=seeded(seed))
    counts = tuple(size // 10 for size in evaluator.layout.sizes)
    uniform = counts if scope == "layer" else None
    return seed_genes(scores, evaluator.layout, sum(counts), scope, uniform)


def large_seeds() -> list[Individual]:
    """Return two individuals."""
    return [
        Individual.from_genes(large_genes(seed), large_evaluator().layout, "made")
        for seed in (1, 2)
    ]


def plan_of(preset: str, generations: int = 2) -> SearchPlan:
    """Return a plan for a short search of a large network."""
    chosen, evaluator = find_preset(preset), large_evaluator()
    return SearchPlan(
        preset=chosen,
        layout=evaluator.layout,
        seed=3,
        population=2,
        offspring=3,
        refinement=Refinement(steps=1, learning_rate=1.0, batch=4) if chosen.gradient else None,
        limits=SearchLimits(generations=generations),
        keep=large_genes(1).keep,
    )


def bits_of(people: Sequence[Individual]) -> list[tuple[Any, ...]]:
    """Return individuals to the bit."""
    return [
        (one.genes.scores.numpy().tobytes(), one.genes.counts, one.key, one.search_fitness)
        for one in people
    ]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["default", "black-box"])
def test_a_search_of_a_large_network_goes_on_from_the_disk(preset: str, tmp_path: Path) -> None:
    """Half-precision genes come back to the bit, and so does everything after them."""
    evaluator, plan, states = large_evaluator(), plan_of(preset), list[SearchState]()
    whole = Evolution(plan, SerialWorkers(evaluator), lambda _: states.append(whole.state()))
    outcome = whole.run(large_seeds())
    assert {one.genes.scores.dtype for one in outcome.population} == {torch.float16}
    assert all(torch.equal(o.genes.decode(evaluator.layout), o.mask) for o in outcome.population)
    assert {one.key for one in outcome.population} - {one.key for one in large_seeds()}

    write_checkpoint(tmp_path / "state", *states[1].to_record())
    facts, tensors = read_checkpoint(tmp_path / "state")
    again = Evolution(plan, SerialWorkers(evaluator))
    again.restore(SearchState.from_record(facts, tensors, plan))
    rest = again.run([])
    assert bits_of(rest.population) == bits_of(outcome.population)
    assert rest.evaluations == outcome.evaluations
    assert rest.best.key == outcome.best.key


RECIPES = [
    Variation(),
    Variation("whole-layer", "threshold-swap"),
    Variation(
        "uniform", "budget-shift", refinement=Refinement(steps=1, learning_rate=1.0, batch=4)
    ),
]


@pytest.mark.slow
def test_large_children_are_the_same_from_any_worker(ray_session: None) -> None:
    """Genes, masks and fitness are equal to the bit, in this process and on two actors."""
    parents = large_genes(1), large_genes(2)
    tasks = [BreedTask(parents, recipe, seed, 0) for seed, recipe in enumerate(RECIPES)]
    evaluator = large_evaluator()
    with RayWorkers(evaluator, WorkerOptions(2)) as actors:
        assert run_to_bits(actors, tasks) == run_to_bits(SerialWorkers(evaluator), tasks)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["allocated", "global", "layer"])
def test_children_whose_scores_stay_share_them_with_their_parent(scope: str) -> None:
    """Keep counts that move between layers, or a copy, cost no further scores."""
    evaluator, parent = large_evaluator(), large_genes(1, scope)
    for mutation in (None, *MUTATIONS):
        child = BreedTask((parent,), Variation(mutation=mutation), 1, 0).run(evaluator)
        assert child.genes.scores.dtype == torch.float16
        assert int(child.genes.decode(evaluator.layout).count_nonzero()) == parent.keep
        moves = mutation in ("budget-shift", "reallocate")  # those of scope `layer` never do
        stays = mutation is None or (moves and scope != "global")
        same = child.genes.scores.data_ptr() == parent.scores.data_ptr()
        assert same == stays, mutation


class Watching(SerialWorkers):
    """Workers that note how many of the large children that they bred are still held.

    Attributes:
        held: after every call, one number.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        super().__init__(evaluator)
        self.held: list[int] = []
        self._bred: list[weakref.ref[Tensor]] = []

    def run(self, tasks: Sequence[Any]) -> list[Any]:
        """Run, count."""
        results = super().run(tasks)
        if isinstance(tasks[0], BreedTask):
            self._bred += [weakref.ref(one.genes.scores) for one in results]
            self.held.append(sum(one() is not None for one in self._bred))
        return results


@pytest.mark.slow
def test_large_children_that_lose_the_race_are_let_go_of_as_they_come() -> None:
    """One worker breeds them one by one; half of them, the new one and the last are held."""
    preset = replace(find_preset("default"), crossovers={"averaging": 1.0})
    plan = replace(plan_of("default", 1), preset=preset, offspring=6)
    workers = Watching(large_evaluator())
    Evolution(plan, workers).run(large_seeds())
    assert len(workers.held) == 6
    assert max(workers.held) <= 3 + 2
