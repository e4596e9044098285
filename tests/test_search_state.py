"""A search cut after any generation and put together again is the search that was not cut."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from search_cases import plan_for, random_genes, seeds_of, tiny_evaluator

from gaprune.evolution.engine import Evolution
from gaprune.evolution.genome import Genes, Individual
from gaprune.evolution.presets import as_pareto
from gaprune.evolution.search_plan import SearchLimits, SearchPlan, SearchResult
from gaprune.evolution.search_state import SearchState
from gaprune.io.checkpoints import read_checkpoint, write_checkpoint
from gaprune.workers import SerialWorkers

EVALUATOR = tiny_evaluator()
KEEP = 60
SEEDS = seeds_of(EVALUATOR, KEEP)
SCORES = {one.key: EVALUATOR.validate(one.mask) for one in SEEDS}


def plan_of(preset: str, *, front: bool, generations: int = 6) -> SearchPlan:
    """Return a small plan; one with keep counts to allocate, where that can be."""
    plan = plan_for(EVALUATOR, preset, seed=3, population=5, offspring=6)
    return replace(
        plan,
        preset=as_pareto(plan.preset) if front else plan.preset,
        limits=SearchLimits(generations=generations, stagnation=5),
        most=120 if front else None,
        density_search=0 if front or preset == "classic" else 2,
    )


def search(
    plan: SearchPlan, start: SearchState | None = None
) -> tuple[SearchResult, list[SearchState]]:
    """Search from the seeds, or go on; return every state on the way."""
    states: list[SearchState] = []
    evolution = Evolution(
        plan, SerialWorkers(EVALUATOR), lambda _: states.append(evolution.state())
    )
    if start is not None:
        evolution.restore(start)
    return evolution.run(SEEDS if start is None else [], SCORES), states


def through_disk(one: SearchState, plan: SearchPlan, place: Path) -> SearchState:
    """Return what a reader finds that knows the plan only."""
    write_checkpoint(place, *one.to_record())
    facts, tensors = read_checkpoint(place)
    return SearchState.from_record(facts, tensors, plan)


def genes_of(one: Individual) -> tuple[Any, ...]:
    """Return everything about an individual, to the bit."""
    genes = one.genes
    scores = genes.scores.numpy().tobytes()
    rest = (genes.counts, genes.keep, genes.fixed, genes.absolute)
    origin = (one.key, one.origin, one.step_scale)
    return scores, rest, origin, one.race_fitness, one.fitness.values


def all_of(outcome: SearchResult) -> dict[str, Any]:
    """Return everything that a search found, without its time."""
    return {
        "best": (outcome.best.key, outcome.best.origin, outcome.validation_score),
        "population": [genes_of(one) for one in outcome.population],
        "front": [one.key for one in outcome.front],
        "judged": list(outcome.validation_scores.items()),
        "history": [replace(record, seconds=0.0) for record in outcome.history],
        "ending": (outcome.stopped, outcome.evaluations),
    }


@pytest.mark.parametrize("front", [False, True], ids=["one budget", "front"])
@pytest.mark.parametrize("preset", ["default", "black-box", "classic"])
def test_cut_after_any_generation_it_finds_the_same(
    preset: str, front: bool, tmp_path: Path
) -> None:
    """Genes, fitness, verdicts, rates, order and counters, bit for bit, through the disk."""
    plan = plan_of(preset, front=front)
    whole, states = search(plan)
    assert [one.generation for one in states] == list(range(len(whole.history)))
    assert len(states) > 3
    for number, state in enumerate(states):
        again, rest = search(plan, through_disk(state, plan, tmp_path / str(number)))
        assert all_of(again) == all_of(whole), number
        assert len(rest) == len(states) - 1 - number


@pytest.mark.parametrize("preset", ["black-box", "classic"])
def test_without_gradient_steps_three_and_three_are_six(preset: str, tmp_path: Path) -> None:
    """A search that had ended goes on under a later limit as the longer one does."""
    short, long = (plan_of(preset, front=False, generations=n) for n in (3, 6))
    state = search(short)[1][-1]
    longer = through_disk(state, long, tmp_path / "state")
    assert all_of(search(long, longer)[0]) == all_of(search(long)[0])


def test_a_snapshot_stays_as_it_is(tmp_path: Path) -> None:
    """What the search does later changes nothing in it."""
    plan = plan_of("default", front=False)
    first: list[tuple[SearchState, str]] = []
    evolution = Evolution(plan, SerialWorkers(EVALUATOR))

    def report(_: object) -> None:
        if not first:
            state = evolution.state()
            first.append((state, json.dumps(state.to_record()[0])))

    evolution._report = report
    evolution.run(SEEDS, SCORES)
    (state, before) = first[0]
    assert json.dumps(state.to_record()[0]) == before


def test_scores_of_any_kind_are_kept_to_the_bit(tmp_path: Path) -> None:
    """Infinite and tiny, without counts, fixed, ranked by size; a shared tensor is kept once."""
    plan = plan_of("black-box", front=False)
    odd = torch.randn(EVALUATOR.layout.total, generator=torch.Generator().manual_seed(1))
    odd[:4] = torch.tensor([float("inf"), -float("inf"), 1e-45, -0.0])
    counts = random_genes(EVALUATOR.layout, KEEP).counts
    kinds = [
        Genes(odd, None, KEEP),
        Genes(odd, None, KEEP + 1, absolute=True),
        Genes(odd.flip(0), counts, KEEP, fixed=True),
    ]
    population = [Individual.from_genes(genes, EVALUATOR.layout, "made") for genes in kinds]
    for number, one in enumerate(population):
        one.fitness.values, one.race_fitness, one.step_scale = (number / 3,), -float("inf"), 0.7
    state = replace(search(plan)[1][0], population=tuple(population), leaders=())
    assert len([name for name in state.to_record()[1] if name.startswith("scores")]) == 2
    found = through_disk(state, plan, tmp_path / "state")
    assert [genes_of(one) for one in found.population] == [genes_of(one) for one in population]


def test_leaders_that_may_have_children_keep_their_genes(tmp_path: Path) -> None:
    """Former leaders have masks only; all validation scores are the same."""
    plan = plan_of("black-box", front=False)
    state = search(plan)[1][-1]
    alive = {id(individual) for individual in state.population}
    former = [leader for leader, _ in state.leaders if id(leader) not in alive]
    assert former
    assert all(individual.genes is None for individual in former)
    with_genes = tuple((seed, SCORES[seed.key]) for seed in SEEDS)
    for leaders in (state.leaders, with_genes):
        saved = replace(state, leaders=leaders)
        restored = through_disk(saved, plan, tmp_path / str(len(leaders)))
        for (one, score), (before, known) in zip(restored.leaders, leaders, strict=True):
            assert (one.key, one.keep, score) == (before.key, before.keep, known)
            assert torch.equal(one.mask, before.mask)
            assert (one.genes is None) == (before.genes is None)
            assert one.genes is None or torch.equal(one.genes.scores, before.genes.scores)
