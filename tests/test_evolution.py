"""The search: what it promises of its result, when it stops, and what randomness it uses."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from search_cases import (
    Recording,
    plan_for,
    random_genes,
    seeded,
    seeds_of,
    tiny_evaluator,
    validated,
)

from gaprune.errors import InputError
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evolution.engine import Evolution
from gaprune.evolution.genome import Individual
from gaprune.evolution.operators import CROSSOVERS, MUTATIONS
from gaprune.evolution.presets import NONE, PRESETS, as_pareto, find_preset
from gaprune.evolution.search_plan import (
    OVERFIT_DROP,
    SearchLimits,
    SearchPlan,
    SearchResult,
    overfit_generations,
)
from gaprune.evolution.seeding import kaiming_population
from gaprune.evolution.tasks import ValidateTask, derive_seed
from gaprune.masks.budget import keep_total, uniform_counts
from gaprune.workers import SerialWorkers

EVALUATOR = tiny_evaluator()
LABELLED = tiny_evaluator("accuracy", labels=True)
KEEP = 60
plan_of = partial(plan_for, EVALUATOR)
STEPS = 4  # gradient steps of its children


def search(
    plan: SearchPlan, evaluator: Evaluator = EVALUATOR, seeds: Sequence[Individual] | None = None
) -> SearchResult:
    """Search from the same seeds."""
    start = seeds_of(evaluator, plan.keep) if seeds is None else seeds
    return Evolution(plan, SerialWorkers(evaluator)).run(start, validated(start, evaluator))


@pytest.mark.parametrize("scope", ["allocated", "global", "layer"])
@pytest.mark.parametrize("preset", ["default", "black-box"])
def test_the_result_is_never_worse_than_the_best_seed(preset: str, scope: str) -> None:
    """On the validation inputs it agrees at least as often, at exactly the asked budget."""
    for seed in range(2):
        plan = plan_of(preset, seed=seed, limits=SearchLimits(generations=4))
        seeds = seeds_of(EVALUATOR, KEEP, scope=scope)
        plan = replace(plan, keep=seeds[1].genes.keep)
        seeds = [one for one in seeds if one.genes.keep == plan.keep]
        outcome = search(plan, seeds=seeds)
        best_seed = max(score.agreement for score in validated(seeds, EVALUATOR).values())
        assert outcome.validation_score.agreement >= best_seed
        assert outcome.validation_score == ValidateTask(outcome.best.bits).run(EVALUATOR)
        assert int(outcome.best.mask.count_nonzero()) == plan.keep


def test_a_search_on_misleading_calibration_returns_the_seed() -> None:
    """The result is never worse than the best seed, even if validation contradicts calibration."""
    evaluator = misled()
    magnitude = seeds_of(EVALUATOR, KEEP)[:1]
    wanted = validated(magnitude, EVALUATOR)[magnitude[0].key].agreement
    outcome = search(
        plan_of(limits=SearchLimits(generations=8)), evaluator, seeds_of(EVALUATOR, KEEP)
    )
    leader = max(outcome.population, key=lambda one: one.search_fitness)
    assert outcome.validation_scores[leader.key].agreement < wanted  # it was misled
    assert outcome.validation_score.agreement >= wanted


@pytest.mark.parametrize("preset", ["default", "black-box"])
def test_the_best_fitness_never_falls(preset: str) -> None:
    """Elites survive, and each generation records its population's best and mean."""
    outcome = search(plan_of(preset, limits=SearchLimits(generations=8)))
    best = [record.best for record in outcome.history]
    assert best == sorted(best)
    assert best[-1] > best[0]
    assert [record.generation for record in outcome.history] == list(range(9))
    final = [one.search_fitness for one in outcome.population]
    assert outcome.history[-1].best == max(final)
    assert outcome.history[-1].mean == pytest.approx(sum(final) / len(final))
    assert all(EVALUATOR.fitness(one.mask) == one.search_fitness for one in outcome.population)
    assert len({one.key for one in outcome.population}) == len(outcome.population)


def test_every_evaluation_is_counted() -> None:
    """Seeds on both rungs; then each child, its gradient steps, and the faster half once more."""
    assert [r.evaluations for r in search(plan_of()).history] == [8, 20, 32, 44, 56, 68]
    counted = [r.evaluations for r in search(plan_of("default")).history]
    assert counted == [8 + n * (8 * (1 + STEPS) + 4) for n in range(6)]


@pytest.mark.parametrize(
    ("limits", "stopped", "generation"),
    [
        (SearchLimits(generations=3), "generations", 3),
        (SearchLimits(generations=0), "generations", 0),
        (SearchLimits(evaluations=30), "evaluations", 2),
        (SearchLimits(generations=50, evaluations=30), "evaluations", 2),
    ],
)
def test_a_search_stops_at_its_limit(limits: SearchLimits, stopped: str, generation: int) -> None:
    """By generations or evaluations, whichever comes first, and says by which."""
    outcome = search(plan_of(limits=limits))
    assert outcome.stopped == stopped
    assert outcome.history[-1].generation == generation
    assert outcome.seconds >= outcome.history[-1].seconds >= 0


def test_a_search_stops_when_it_stagnates() -> None:
    """After so many generations without a better fitness, and not before."""
    outcome = search(plan_of(limits=SearchLimits(stagnation=4, generations=500)))
    assert outcome.stopped == "stagnation"
    best = [record.best for record in outcome.history]
    assert len(set(best[-5:])) == 1
    assert all(len(set(best[i : i + 5])) > 1 for i in range(len(best) - 5))


def fingerprint(outcome: SearchResult) -> tuple[object, ...]:
    """Return everything about a search but its time."""
    return (
        outcome.best.key,
        [(one.key, one.genes.scores.numpy().tobytes()) for one in outcome.population],
        [(one.best, one.mean, one.validation, one.evaluations) for one in outcome.history],
        list(outcome.validation_scores.items()),
    )


@pytest.mark.parametrize("preset", ["default", "black-box", "classic"])
def test_the_seed_fixes_the_masks_whatever_the_global_generators_hold(preset: str) -> None:
    """Python's, numpy's and torch's own randomness are neither used nor moved."""
    evaluator = LABELLED if preset == "classic" else EVALUATOR
    states = []
    found = []
    for outside in (1, 2):
        random.seed(outside)
        np.random.seed(outside)  # noqa: NPY002 - the global one is the point
        torch.manual_seed(outside)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index] # noqa: NPY002
        found.append(fingerprint(search(plan_of(preset), evaluator)))
        after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index] # noqa: NPY002
        states.append(all(map(np.array_equal, map(str, before), map(str, after))))
    assert found[0] == found[1]
    assert all(states)
    assert found[0] != fingerprint(search(plan_of(preset, seed=2), evaluator))


@given(st.lists(st.one_of(st.integers(), st.text()), min_size=1, max_size=4))
def test_derived_seeds_depend_on_every_part(parts: list[int | str]) -> None:
    """Another part, order or number of parts gives another seed of 63 bits."""
    seed = derive_seed(*parts)
    assert 0 <= seed < 2**63
    assert seed == derive_seed(*parts)
    assert seed not in (derive_seed(*parts, 0), derive_seed("x", *parts))
    torch.Generator().manual_seed(seed)


class Interrupting(SerialWorkers):
    """Workers on which the user presses Ctrl-C at the n-th call."""

    def __init__(self, evaluator: Evaluator, at: int) -> None:
        super().__init__(evaluator)
        self.left = at

    def run(self, tasks: Sequence[Any]) -> list[Any]:
        """Run the tasks of earlier calls, half of those of the n-th."""
        self.left -= 1
        if self.left == 0:
            super().run(tasks[: len(tasks) // 2])
            raise KeyboardInterrupt
        return super().run(tasks)


@pytest.mark.parametrize("at", range(3, 13))
def test_an_interrupt_ends_the_search_with_the_best_so_far(at: int) -> None:
    """Wherever in a generation it comes, what was found until then is returned."""
    plan = plan_of(limits=SearchLimits(generations=50))
    seeds = seeds_of(EVALUATOR, KEEP)
    known = validated(seeds, EVALUATOR)
    outcome = Evolution(plan, Interrupting(EVALUATOR, at)).run(seeds, known)
    assert outcome.stopped == "interrupted"
    assert outcome.validation_score.agreement >= max(score.agreement for score in known.values())
    assert int(outcome.best.mask.count_nonzero()) == KEEP
    assert outcome.best.key in outcome.validation_scores


def test_an_interrupt_before_anything_is_known_is_passed_on() -> None:
    """Without any judged candidate there is nothing to return."""
    with pytest.raises(KeyboardInterrupt):
        Evolution(plan_of(), Interrupting(EVALUATOR, 1)).run(seeds_of(EVALUATOR, KEEP))


def test_classic_is_the_original_idea() -> None:
    """Random scores ranked by size, equal layers, resets in (−1, 1), children replace parents."""
    layout, sparsity = EVALUATOR.layout, 0.7
    counts = tuple(uniform_counts(layout, sparsity))
    genes = list(kaiming_population(layout, sparsity, "layer", 12, seeded(4)))
    plan = plan_of("classic", population=12, offspring=12, keep=keep_total(layout, sparsity))
    workers = Recording(LABELLED)
    outcome = Evolution(plan, workers).run(
        [Individual.from_genes(one, layout, "kaiming") for one in genes]
    )

    bounds = [shape[1] ** -0.5 for shape in layout.shapes]  # Kaiming-uniform with a = √5
    for one in genes:
        for layer, bound in zip(layout.split(one.scores).values(), bounds, strict=True):
            assert 0.8 * bound < layer.abs().max().item() <= bound
    assert len(workers.bred) == 5 * 12
    for one in [*genes, *workers.bred]:
        assert one.counts == counts
        assert one.fixed
        assert one.absolute
        assert one.scores.abs().max().item() <= 1
        kept = one.decode(layout)
        for part, count in zip(layout.slices, counts, strict=True):
            expected = one.scores[part].abs().argsort(descending=True, stable=True)[:count]
            assert set(kept[part].nonzero().flatten().tolist()) == set(expected.tolist())
    assert any(one.scores.abs().max().item() > max(bounds) for one in workers.bred)  # by a reset
    bred = {one.scores.numpy().tobytes() for one in workers.bred[-12:]}
    assert all(one.genes.scores.numpy().tobytes() in bred for one in outcome.population)


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Tell whether `one` is nowhere worse and somewhere better."""
    pairs = list(zip(one, other, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["default", "black-box"])
def test_a_pareto_search_returns_a_front(preset: str) -> None:
    """It holds all that nobody dominates, and they keep from the asked number to the most."""
    least, most = 25, 140
    plan = plan_of(preset, population=16, offspring=24, limits=SearchLimits(generations=8))
    plan = replace(plan, preset=as_pareto(plan.preset), keep=least, most=most)
    seeds = seeds_of(EVALUATOR, least, scope="global")
    outcome = search(plan, seeds=seeds)
    values = {one.key: (one.search_fitness, -one.genes.keep) for one in outcome.population}
    undominated = {
        key for key, own in values.items() if not any(dominates(v, own) for v in values.values())
    }
    assert {one.key for one in outcome.front} == undominated
    kept = [int(one.mask.count_nonzero()) for one in outcome.front]
    assert kept == sorted(kept) == [one.genes.keep for one in outcome.front]
    assert least <= min(kept) <= max(kept) <= most
    assert len(set(kept)) > 1
    assert all(one.key in outcome.validation_scores for one in outcome.front)
    assert outcome.best.genes.keep == least
    best_seed = max(score.agreement for score in validated(seeds, EVALUATOR).values())
    assert outcome.validation_score.agreement >= best_seed


@pytest.mark.parametrize("name", PRESETS)
def test_presets_name_operators_that_exist(name: str) -> None:
    """Probabilities add up to 1, options are taken by their mutation, the gradient is stated."""
    preset = PRESETS[name]
    assert set(preset.crossovers) <= {*CROSSOVERS, NONE}
    assert set(preset.mutations) <= {*MUTATIONS, NONE}
    assert sum(preset.crossovers.values()) == pytest.approx(1)
    assert sum(preset.mutations.values()) == pytest.approx(1)
    parent = random_genes(EVALUATOR.layout, KEEP)
    for mutation, options in preset.options.items():
        MUTATIONS[mutation](parent, EVALUATOR.layout, seeded(), **options)
    assert preset.gradient == ("steps" in preset.defaults)


def test_an_unknown_preset_is_refused_with_the_valid_names() -> None:
    """The nearest name and all of them."""
    with pytest.raises(InputError, match=r"'clasic' \(did you mean 'classic'\?\).*black-box"):
        find_preset("clasic")


def test_operator_rates_are_reported_and_adapt() -> None:
    """Every generation records the probabilities; the adaptive ones change, classic's do not."""
    adaptive = search(plan_of()).history
    assert set(adaptive[0].operator_rates["crossover"]) == set(PRESETS["black-box"].crossovers)
    assert adaptive[0].operator_rates != adaptive[-1].operator_rates
    fixed = search(plan_of("classic"), LABELLED).history
    assert fixed[0].operator_rates == fixed[-1].operator_rates
    classic = PRESETS["classic"]
    assert fixed[0].operator_rates == {
        "crossover": classic.crossovers,
        "mutation": classic.mutations,
    }


@given(st.lists(st.integers(0, 100).map(lambda percent: percent / 100), max_size=12))
def test_generations_apart_are_counted_from_the_end(validation: list[float]) -> None:
    """As many as trail the best before them; one that does not starts the count anew."""
    apart = [max(validation[: n + 1]) - value >= OVERFIT_DROP for n, value in enumerate(validation)]
    expected = next((n for n, one in enumerate(reversed(apart)) if not one), len(apart))
    assert overfit_generations(validation) == expected


def misled() -> Evaluator:
    """Return an evaluator whose calibration and validation inputs have different teachers."""
    evaluator = tiny_evaluator()
    order = torch.randperm(4, generator=seeded(1))
    teacher = evaluator.search.teacher[:, order].roll(1, 1)
    return replace(evaluator, search=evaluator.search._replace(teacher=teacher))


def patient(patience: int | None) -> SearchPlan:
    """Return a plan of at most thirty generations."""
    return plan_of(limits=SearchLimits(generations=30, patience=patience))


@pytest.mark.parametrize("patience", [1, 2, 4])
def test_a_misled_search_stops_when_patience_ends(patience: int) -> None:
    """At the first generation that ends so many apart; without patience it goes on."""
    evaluator = misled()
    free, stopped = search(patient(None), evaluator), search(patient(patience), evaluator)
    assert free.stopped == "generations"
    assert stopped.stopped == "validation"
    validation = [record.validation for record in free.history]
    first = next(
        n for n in range(len(validation)) if overfit_generations(validation[: n + 1]) >= patience
    )
    assert [record.validation for record in stopped.history] == validation[: first + 1]
