"""The continuation phase: steps that begin on the repaired network and end on the strict one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import OWN, TINY, Run
from comparison_cases import QUICK, conv_target
from hypothesis import given
from hypothesis import strategies as st
from repair_networks import Convolutional, loop_evaluator, target_of
from search_cases import Recording, plan_for, random_genes, seeded, seeds_of, validated
from torch import nn

from gaprune import InputError, InputOptions, prune, prune_target
from gaprune.callbacks import Observer
from gaprune.config import make_settings
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evaluation.forward_modes import GuidedForward, RepairedForward
from gaprune.evolution.engine import Evolution
from gaprune.evolution.gradient import Refinement, refine
from gaprune.evolution.search_plan import (
    DENSITY_SEARCH,
    MIN_DENSITY_OFFSPRING,
    SEARCH,
    WARMUP,
    SearchLimits,
    SearchPlan,
    SearchResult,
)
from gaprune.evolution.tasks import BreedTask
from gaprune.masks.supermask import layer_counts
from gaprune.models.target import target_from_module
from gaprune.records import Generation
from gaprune.runs.setup import check_settings, make_plan, resolve_settings
from gaprune.workers import SerialWorkers, WorkerOptions, Workers
from gaprune.workers.ray_pool import RayWorkers

TARGET = target_of(Convolutional, (2, 6, 6), double=False)
KEEP = TARGET.layout.total // 3
STEPS = Refinement(steps=3, learning_rate=0.5, batch=16)
FADING = Refinement(
    steps=5, learning_rate=0.4, batch=16, last_rate=0.02, cosine=True, fade=(0.1, 0.7)
)


def evaluator_of(statistics_loss: float = 0.0) -> Evaluator:
    """Return a guided evaluator of a network with two BatchNorms."""
    evaluator = loop_evaluator(TARGET, gradient_share=0.5)
    assert isinstance(evaluator.forward_mode, RepairedForward)
    return replace(evaluator, forward_mode=GuidedForward(evaluator.forward_mode, statistics_loss))


EVALUATOR = evaluator_of()


def plan_of(**changes: Any) -> SearchPlan:
    """Return a small plan with a continuation."""
    limits = SearchLimits(generations=3)
    common = {"population": 2, "offspring": 3, "refinement": STEPS, "limits": limits, "keep": KEEP}
    return replace(plan_for(EVALUATOR, "default", **common, warmup=FADING), **changes)


def search(plan: SearchPlan, workers: Workers | None = None) -> SearchResult:
    """Search from five seeds."""
    seeds = seeds_of(EVALUATOR, plan.keep, count=5)
    evolution = Evolution(plan, workers or SerialWorkers(EVALUATOR))
    return evolution.run(seeds, validated(seeds, EVALUATOR))


def test_repair_fades_and_steps_shorten_along_the_way() -> None:
    """All of it first, none from the stated part on, evenly between; lengths along a cosine."""
    steps = Refinement(40, 2.0, 8, last_rate=0.1, cosine=True, fade=(0.1, 0.7))
    forward_mode = [steps.faded(step, EVALUATOR).forward_mode for step in range(40)]
    fades = [one.fade for one in forward_mode if isinstance(one, GuidedForward)]
    assert fades[:5] == [0.0] * 5
    assert fades[28:] == [1.0] * 12
    assert torch.diff(torch.tensor(fades[4:29])).allclose(torch.tensor(1 / 24))
    wave = 0.5 + 0.5 * torch.linspace(0, torch.pi, 41, dtype=torch.float64).cos()
    lengths = torch.tensor([steps.step_length(step) for step in range(41)], dtype=torch.float64)
    assert torch.allclose(lengths, 0.1 + 1.9 * wave)
    assert STEPS.faded(2, EVALUATOR) is EVALUATOR


@pytest.mark.parametrize("scope", ["allocated", "global", "layer"])
def test_a_fade_that_never_ends_refines_for_repair_and_one_that_is_over_does_not(
    scope: str,
) -> None:
    """Bit for bit what steps on the repaired and on the strict network give."""
    genes = random_genes(EVALUATOR.layout, KEEP, 1, scope)
    for fade, end in (((1.0, 2.0), EVALUATOR.repaired), ((-2.0, -1.0), EVALUATOR.strict)):
        expected = refine(genes, end, STEPS, seeded())
        found = refine(genes, EVALUATOR, replace(STEPS, fade=fade), seeded())
        assert torch.equal(found.scores, expected.scores)
        assert found.counts == expected.counts
    between = refine(genes, EVALUATOR, replace(STEPS, fade=(0.0, 1.0)), seeded())
    assert not torch.equal(between.scores, expected.scores)
    mask = between.decode(EVALUATOR.layout)
    assert int(mask.count_nonzero()) == genes.keep
    if scope == "layer":
        assert tuple(layer_counts(mask, EVALUATOR.layout)) == genes.counts


@given(st.booleans(), st.integers(0, 5), st.one_of(st.none(), st.integers(0, 12)))
def test_a_plan_divides_its_generations(
    continued: bool,
    density_search: int,
    generations: int | None,
) -> None:
    """One for the continuation, then those that allocate, then the search; the limit counts all."""
    plan = plan_of(
        warmup=FADING if continued else None,
        density_search=density_search,
        limits=SearchLimits(generations=generations),
    )
    names = [plan.phase(number).name for number in range(1, 13)]
    first = [WARMUP] * continued + [DENSITY_SEARCH] * density_search
    assert names == first + [SEARCH] * (12 - len(first))
    assert plan.phase(0) is plan.phases[0]
    assert plan.phases[-1].start == len(first)
    last = plan.phases[-1]
    assert last.length == (None if generations is None else max(0, generations - len(first)))


def test_children_are_copies_of_the_best_after_repair() -> None:
    """Also where it is no survivor of the first selection; their random draws differ."""
    many = seeds_of(EVALUATOR, KEEP, count=40)
    strict = {one.key: EVALUATOR.fitness(one.mask) for one in many}
    repaired = {one.key: EVALUATOR.repaired.fitness(one.mask) for one in many}
    best = max(many, key=lambda one: repaired[one.key] - strict[one.key])
    better = [one for one in many if strict[one.key] > strict[best.key]]
    others = [one for one in better if repaired[one.key] < repaired[best.key]]
    assert len(others) >= 2  # so many survive
    seeds = [*others, best]
    workers = Recording(EVALUATOR)
    Evolution(plan_of(), workers).run(seeds, validated(seeds, EVALUATOR))
    brood = next(tasks for tasks in workers.calls if tasks and isinstance(tasks[0], BreedTask))
    assert len(brood) == 3
    for task in brood:
        assert task.parents == (best.genes,)
        assert task.variation.origin == "gradient"
        assert task.variation.refinement == FADING
    assert len({task.seed for task in brood}) == 3
    children = SerialWorkers(EVALUATOR).run(brood)
    assert len({child.genes.scores.numpy().tobytes() for child in children}) == 3
    expected = refine(best.genes, EVALUATOR, FADING, seeded(brood[1].seed))
    assert torch.equal(children[1].genes.scores, expected.scores)
    assert children[1].fitness == EVALUATOR.fitness(expected.decode(EVALUATOR.layout), 0)


def test_the_phase_is_counted_and_recorded() -> None:
    """Seeds are scored once more, after repair; every step of every child counts."""
    outcome = search(plan_of(density_search=1))
    counted = [record.evaluations for record in outcome.history]
    started, seeds = 2 * 5, 5  # two rungs of the race
    continued = started + seeds + 3 * (1 + FADING.steps) + 2
    allocated = continued + MIN_DENSITY_OFFSPRING + MIN_DENSITY_OFFSPRING // 2
    assert counted == [started, continued, allocated, allocated + 3 * (1 + STEPS.steps) + 2]
    names = [record.phase for record in outcome.history]
    assert names == [WARMUP, WARMUP, DENSITY_SEARCH, SEARCH]
    assert list(outcome.history[1].operator_rates.values()) == [{"none": 1.0}] * 2
    best = [record.best for record in outcome.history]
    assert best == sorted(best)
    assert outcome.evaluations == counted[-1]


def test_the_result_is_never_worse_than_the_best_seed() -> None:
    """Strict fitness and the validation inputs decide, as they do without the phase."""
    seeds = seeds_of(EVALUATOR, KEEP, count=5)
    bar = max(score.agreement for score in validated(seeds, EVALUATOR).values())
    outcome = search(plan_of())
    assert outcome.validation_score.agreement >= bar
    assert outcome.validation_score == EVALUATOR.strict.validate(outcome.best.mask)
    assert int(outcome.best.mask.count_nonzero()) == KEEP
    assert outcome.history[-1].best >= max(EVALUATOR.fitness(one.mask) for one in seeds)


@pytest.mark.parametrize("density_search", [0, 2])
def test_stagnation_is_counted_from_where_the_search_begins(density_search: int) -> None:
    """Where everything is kept nothing can gain, and what comes before is not cut short for it."""
    plan = plan_of(
        keep=EVALUATOR.layout.total,
        density_search=density_search,
        limits=SearchLimits(stagnation=2),
        offspring=1,
    )
    outcome = search(plan)
    assert outcome.stopped == "stagnation"
    assert outcome.history[-1].generation == 1 + density_search + 2


@pytest.mark.slow
def test_any_workers_find_the_same_masks(ray_session: None) -> None:
    """With a penalty as well: every figure and score of a search, bit for bit."""
    evaluator = evaluator_of(statistics_loss=2.0)

    def found(workers: Workers) -> tuple[object, ...]:
        outcome = search(plan_of(limits=SearchLimits(generations=2)), workers)
        scores = [(one.key, one.genes.scores.numpy().tobytes()) for one in outcome.population]
        return scores, [replace(one, seconds=0.0) for one in outcome.history], outcome.best.key

    with SerialWorkers(evaluator) as serial:
        expected = found(serial)
        assert found(serial) == expected
    with RayWorkers(evaluator, WorkerOptions(2)) as actors:
        assert found(actors) == expected
    assert found(SerialWorkers(EVALUATOR)) != expected


SMALL: dict[str, Any] = {**QUICK, "sparsity": 0.7, "calibration": ("procedural",)}


class Counting(Observer):
    """Keeps which generation of how many it hears of."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, int | None, str]] = []

    def generation(self, record: Generation, total: int | None) -> None:
        """Keep it."""
        self.heard.append((record.generation, total, record.phase))


@pytest.mark.slow
def test_a_run_continues_allocates_and_searches() -> None:
    """Progress counts the generations of all; the same seed gives the same masks."""
    counting = Counting()
    settings = make_settings({**SMALL, "warmup": 3, "statistics_loss": 1.0, "density_search": 1})
    result = prune_target(conv_target(), settings, observer=counting)
    names = (WARMUP, WARMUP, DENSITY_SEARCH, SEARCH)
    assert counting.heard == [(number, 3, name) for number, name in enumerate(names)]
    assert (result.settings["warmup"], result.settings["statistics_loss"]) == (3, 1.0)
    assert result.repaired is None
    assert result.kept == round(0.3 * result.target.layout.total)
    again = prune_target(conv_target(), settings)
    assert all(torch.equal(again.masks[name], mask) for name, mask in result.masks.items())
    scores = [
        [one.best for one in prune_target(conv_target(), settings.replace(**change)).history]
        for change in ({}, {"statistics_loss": 0.0}, {"warmup": 0})
    ]
    assert scores[0] == [one.best for one in result.history]
    assert scores[0] != scores[1]
    assert len(scores[2]) == 3


def test_drift_alone_steers_the_search() -> None:
    """It needs no continuation, and takes a Pareto search and a network without BatchNorm too."""
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    shown = InputOptions(range=(0, 1))
    long = {**SMALL, "steps": 10, "learning_rate": 2.0, "seed": 1}
    for more in ({}, {"pareto": True, "population": 6}):
        found = [
            prune(net, inputs=shown, **{**long, **more}, statistics_loss=statistics_loss)
            .history[-1]
            .mean
            for statistics_loss in (0.0, 20.0)
        ]
        assert found[0] != found[1]


def resolved(net: nn.Module, **stated: Any) -> tuple[int | None, float | None, SearchPlan]:
    """Return what becomes of both settings, and the plan."""
    target = target_from_module(net, inputs=InputOptions(range=(0, 1)))
    settings = make_settings({"sparsity": 0.5, **stated})
    resolved = resolve_settings(check_settings(settings), target)
    settings = resolved.settings
    return settings.warmup, settings.statistics_loss, make_plan(target, resolved)


BARE = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))
BIASED = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
IMPOSSIBLE: list[tuple[str, nn.Module, dict[str, Any], str]] = [
    ("warmup", BIASED, {"repair_in_loop": True}, "repair_in_loop=True"),
    ("statistics_loss", BIASED, {"repair_in_loop": True}, "repair_in_loop=True"),
    ("warmup", BIASED, {"pareto": True}, "pareto=True"),
    ("warmup", BIASED, {"preset": "black-box"}, "'black-box'"),
    ("statistics_loss", BIASED, {"preset": "classic"}, "'classic'"),
    ("warmup", BARE, {}, "0: has no bias"),
    ("statistics_loss", BARE, {}, "0: has no bias"),
]


@pytest.mark.parametrize(("name", "net", "stated", "words"), IMPOSSIBLE)
def test_what_cannot_be_is_refused_where_it_is_stated(
    name: str,
    net: nn.Module,
    stated: dict[str, Any],
    words: str,
) -> None:
    """With the reason and the way out; by default it is off, and 0 may be said."""
    with pytest.raises(InputError, match=rf"^{name}: 4.*{words}.*{name}="):
        resolved(net, **stated, **{name: 4})
    for said in ({}, {name: 0}):
        warmup, statistics_loss, _ = resolved(net, **stated, **said)
        assert (warmup if name == "warmup" else statistics_loss) == 0


@pytest.mark.parametrize(
    ("layers", "stated", "expected"),
    [
        (8, {}, (300, 2.0)),
        (7, {}, (0, 0.0)),
        (8, {"calibration": ["procedural"]}, (0, 0.0)),
        (8, {"repair_in_loop": True, "repair": True}, (0, 0.0)),
        (8, {"warmup": 0, "statistics_loss": 0.5}, (0, 0.5)),
        (8, {"generations": 0}, (0, 0.0)),
        (8, {"pareto": True}, (0, 0.0)),
    ],
)
def test_deep_networks_on_inverted_inputs_are_guided_by_default(
    layers: int, stated: dict[str, Any], expected: tuple[int, float]
) -> None:
    """Nothing else is, and what is stated counts."""
    blocks = [nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1)) for _ in range(7)]
    net = nn.Sequential(*blocks[: layers - 1], nn.Flatten(), nn.Linear(64, 3))
    shown = InputOptions(shape=(1, 8, 8), range=(0, 1))
    settings = make_settings({"sparsity": 0.5, "calibration": ["inversion"], **stated})
    target = target_from_module(net, inputs=shown)
    found = resolve_settings(check_settings(settings), target).settings
    assert (found.warmup, found.statistics_loss) == expected


def test_the_plan_holds_the_steps_that_were_asked_for() -> None:
    """As long as the search's own at first, a twentieth at last; one generation more."""
    warmup, statistics_loss, plan = resolved(
        BIASED, warmup=30, generations=2, learning_rate=1.5, batch=32, clip=2.0, density_search=1
    )
    assert (warmup, statistics_loss) == (30, 0.0)
    steps = plan.warmup
    assert steps is not None
    assert (steps.steps, steps.learning_rate, steps.batch, steps.clip) == (30, 1.5, 32, 2.0)
    assert steps.last_rate == pytest.approx(0.075)
    assert steps.fade == (0.0, 0.95)
    assert plan.limits.generations == 1 + 1 + 2
    assert resolved(BIASED, generations=2)[2].limits.generations == 2


def test_every_descent_decays_where_candidates_are_scored_after_repair() -> None:
    """There is no warm-up then; strict descents have steps of one length."""
    for changes, last_rate, cosine in (({"repair_in_loop": True}, 0.075, True), ({}, None, False)):
        steps = resolved(BIASED, warmup=0, learning_rate=1.5, **changes)[2].refinement
        assert steps is not None
        assert steps.learning_rate == 1.5
        assert steps.last_rate == (None if last_rate is None else pytest.approx(last_rate))
        assert steps.cosine == cosine


def test_the_command_takes_both(run: Run, place: Path) -> None:
    """As options; what they were is in the configuration, which repeats the run."""
    asked = ("--sparsity", "0.5", "--warmup", "2", "--statistics-loss", "0.5", *TINY)
    ran = run("prune", *OWN, *asked, "--out", "r")
    assert ran.code == 0
    told = (place / "r" / "history.jsonl").read_text().splitlines()
    assert ["warmup" in line for line in told] == [True, True, False]
    config = (place / "r" / "config.toml").read_text()
    assert "warmup = 2" in config
    assert "statistics_loss = 0.5" in config
    assert run("prune", "--config", "r/config.toml", "--out", "r", "--overwrite").code == 0
    refused = run("prune", *OWN, *asked, "--preset", "black-box", "--out", "s")
    assert refused.code == 2
    assert "--warmup" in refused.err
