"""The search: breed, race, select, judge, generation after generation, over a DEAP toolbox."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil, cos, pi
from typing import Any

import numpy as np
import torch
from deap import base, tools

from gaprune.bench import Verdict
from gaprune.evolution.adaptation import OperatorRates
from gaprune.evolution.breeding import Breed, Child, Judge, Recipe, Score, derive_seed
from gaprune.evolution.genome import Fitness, Individual, ParetoFitness
from gaprune.evolution.gradient import Refinement
from gaprune.evolution.presets import NONE, Preset
from gaprune.records import Generation
from gaprune.supermask import Layout
from gaprune.workers import Workers

HALL_OF_FAME = 8
SELECTIONS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "tournament": (tools.selTournament, {"tournsize": 2}),
    "roulette": (tools.selRoulette, {}),
    "random": (tools.selRandom, {}),
}
SURVIVALS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "best": (tools.selBest, {}),
    "nsga2": (tools.selNSGA2, {"nd": "log"}),
}
ASKED = 0.25  # part of the children of a Pareto search that keep exactly the asked number
LEAST_RATE = 0.1  # of the first gradient step length, reached in the last generation


@dataclass(frozen=True)
class Plan:
    """Everything that the engine needs to know beside the genes.

    Attributes:
        preset: operators and survival.
        layout: the network's prunable layers.
        seed: of every random choice.
        population, offspring: survivors and children per generation.
        refinement: length of gradient steps, or None.
        rungs: how many rungs the race has.
        generations, evaluations, seconds, stagnation: when to stop; None is no limit.
        keep: the asked number of kept weights.
        most: with a Pareto search, children keep from `keep` to `most` weights; else None.
    """

    preset: Preset
    layout: Layout
    seed: int
    population: int
    offspring: int
    refinement: Refinement | None
    rungs: int
    generations: int | None
    evaluations: int | None = None
    seconds: float | None = None
    stagnation: int | None = None
    keep: int = 0
    most: int | None = None


@dataclass
class Outcome:
    """What a search found.

    Attributes:
        best: the candidate that does best on the guard among those that led the search.
        verdict: how it does there.
        population: the last one, best first.
        hall_of_fame: the best ever on the search probes.
        front: non-dominated individuals of the last population, sparsest first (Pareto only).
        judged: mask key → how it did on the guard, for all that led the search and the seeds.
        history: one record per generation, as in DEAP's logbook.
        stopped: `generations`, `evaluations`, `seconds`, `stagnation` or `interrupted`.
        evaluations: candidates scored; every gradient step counts as one.
        seconds: of the search alone.
    """

    best: Individual
    verdict: Verdict
    population: list[Individual]
    hall_of_fame: list[Individual]
    front: list[Individual]
    judged: dict[str, Verdict]
    history: list[Generation]
    stopped: str
    evaluations: int
    seconds: float


@dataclass
class _State:
    generation: int = 0
    evaluations: int = 0
    gained: int = 0  # the last generation that improved the best fitness
    best: float = -float("inf")
    leaders: dict[str, tuple[Individual, Verdict]] = field(default_factory=dict)


class Evolution:
    """One search. `run` does it all; `step` does one generation.

    Args:
        plan: how to search.
        workers: where children are bred and scored.
        report: called with every generation's record.
    """

    def __init__(
        self, plan: Plan, workers: Workers, report: Callable[[Generation], None] | None = None
    ) -> None:
        self.plan = plan
        self._workers = workers
        self._report = report
        self._state = _State()
        self._random = random.Random(derive_seed(plan.seed, "selection"))
        adaptive = plan.preset.adaptive
        self._crossovers = OperatorRates(plan.preset.crossovers, adaptive=adaptive)
        self._mutations = OperatorRates(plan.preset.mutations, adaptive=adaptive)
        self.population: list[Individual] = []
        self.hall_of_fame = tools.HallOfFame(HALL_OF_FAME, similar=_same)
        self.logbook = tools.Logbook()
        self.history: list[Generation] = []
        self.toolbox = self._make_toolbox()

    def _make_toolbox(self) -> base.Toolbox:
        toolbox = base.Toolbox()
        select, options = SELECTIONS[self.plan.preset.selection]
        toolbox.register("select", select, **options)
        survive, rules = SURVIVALS[self.plan.preset.survival]
        toolbox.register("survive", survive, **rules)
        toolbox.register("map", self._workers.run)
        statistics = tools.Statistics(lambda individual: individual.quality)
        statistics.register("best", max)
        statistics.register("mean", lambda values: float(np.mean(values)))
        toolbox.register("describe", statistics.compile)
        return toolbox

    def run(
        self, seeds: Sequence[Individual], verdicts: Mapping[str, Verdict] | None = None
    ) -> Outcome:
        """Search from seeds until a limit of the plan is met.

        Args:
            seeds: the first population is drawn from the best of them.
            verdicts: mask key → how it does on the guard, where that is known.

        An interrupt (Ctrl-C) ends the search; what was found until then is returned.
        """
        started = time.monotonic()
        stopped = None
        try:
            self._begin(seeds, verdicts or {}, started)
            while (stopped := self._limit(started)) is None:
                self.step()
                self._record(started)
        except KeyboardInterrupt:
            if not self._state.leaders:
                raise
            stopped = "interrupted"
        best, verdict = self._choose(verdicts or {})
        return Outcome(
            best=best,
            verdict=verdict,
            population=self.population,
            hall_of_fame=list(self.hall_of_fame),
            front=self._front(),
            judged={key: verdict for key, (_, verdict) in self._state.leaders.items()},
            history=self.history,
            stopped=stopped or "interrupted",
            evaluations=self._state.evaluations,
            seconds=time.monotonic() - started,
        )

    def _begin(
        self, seeds: Sequence[Individual], verdicts: Mapping[str, Verdict], started: float
    ) -> None:
        for one in seeds:
            if one.key in verdicts:
                self._state.leaders[one.key] = (one, verdicts[one.key])
        for individual, sprint in zip(seeds, self._score(seeds, 0), strict=True):
            individual.sprint = sprint
        self._score_all(seeds)
        ranked = tools.selBest(list(seeds), len(seeds))
        self.population = self.toolbox.survive(_distinct(ranked), self.plan.population)
        self._judge(self._front() or ranked[:1])
        self._record(started)

    def step(self) -> None:
        """Run one generation: breed, race, survive."""
        state, plan = self._state, self.plan
        state.generation += 1
        children = self._breed()
        keep = ceil(len(children) / 2) if plan.preset.races else len(children)
        children = sorted(children, key=lambda child: -child.quality)[:keep]
        if plan.rungs > 1 and plan.preset.races:
            self._score_all(children)
        if plan.preset.elitist:
            contenders = _distinct([*self.population, *children])
            self.population = self.toolbox.survive(contenders, plan.population)
        else:
            self.population = children[: plan.population]
        self._judge(self._front() or tools.selBest(self.population, 1))

    def _breed(self) -> list[Individual]:
        plan, state = self.plan, self._state
        generator = torch.Generator().manual_seed(derive_seed(plan.seed, "vary", state.generation))
        with _python_random(self._random):
            parents = self.toolbox.select(self.population, 2 * plan.offspring)
        pairs = list(zip(parents[::2], parents[1::2], strict=True))
        recipes = [self._recipe(pair, generator) for pair in pairs]
        rung = 0 if plan.preset.races else plan.rungs - 1
        tasks = [
            Breed(
                (a.genes,) if recipe.crossover is None else (a.genes, b.genes),
                recipe,
                derive_seed(plan.seed, "child", state.generation, index),
                rung,
            )
            for index, ((a, b), (recipe, _)) in enumerate(zip(pairs, recipes, strict=True))
        ]
        bred: list[Child] = self.toolbox.map(tasks)
        children = []
        for pair, (recipe, rate), child in zip(pairs, recipes, bred, strict=True):
            children.append(self._born(child, recipe, rate))
            steps = recipe.refinement.steps if recipe.refinement else 0
            state.evaluations += 1 + steps
            improved = child.fitness > max(parent.sprint for parent in pair)
            self._crossovers.credit(recipe.crossover or NONE, improved=improved)
            self._mutations.credit(recipe.mutation or NONE, improved=improved)
        return children

    def _recipe(
        self, pair: tuple[Individual, Individual], generator: torch.Generator
    ) -> tuple[Recipe, float]:
        crossover = self._crossovers.draw(generator)
        mutation = self._mutations.draw(generator)
        factor = float(torch.randn((), generator=generator) * 0.3)
        rate = (pair[0].rate * pair[1].rate) ** 0.5 * np.exp(factor)
        refinement = self.plan.refinement
        if refinement is not None:
            length = refinement.rate * rate * self._annealing()
            refinement = Refinement(refinement.steps, float(length), refinement.batch)
        options = self.plan.preset.options.get(mutation, {})
        recipe = Recipe(
            crossover=None if crossover == NONE or pair[0] is pair[1] else crossover,
            mutation=None if mutation == NONE else mutation,
            options=tuple(options.items()),
            refinement=refinement,
            keep=self._budget(pair, generator),
        )
        return recipe, float(np.clip(rate, 0.25, 4.0))

    def _budget(
        self, pair: tuple[Individual, Individual], generator: torch.Generator
    ) -> int | None:
        """Draw a child's keep count in a Pareto search: near its parents', or the asked one."""
        plan = self.plan
        if plan.most is None:
            return None
        asked = torch.rand((), generator=generator) < ASKED
        factor = float(torch.randn((), generator=generator) * 0.3)
        mean = (pair[0].genes.keep * pair[1].genes.keep) ** 0.5
        return plan.keep if asked else int(np.clip(mean * np.exp(factor), plan.keep, plan.most))

    def _annealing(self) -> float:
        """Shorten gradient steps along a cosine, from 1 to `LEAST_RATE` in the last generation."""
        if not self.plan.generations:
            return 1.0
        progress = min(1.0, (self._state.generation - 1) / max(1, self.plan.generations - 1))
        return LEAST_RATE + (1 - LEAST_RATE) * (1 + cos(pi * progress)) / 2

    def _born(self, child: Child, recipe: Recipe, rate: float) -> Individual:
        origin = "+".join(recipe.operators) or "copy"
        fitness = Fitness if self.plan.most is None else ParetoFitness
        individual = Individual(child.genes, self.plan.layout, origin, rate, fitness)
        individual.sprint = child.fitness
        self._value(individual, child.fitness)
        return individual

    def _score(self, individuals: Sequence[Individual], rung: int = -1) -> list[float]:
        scores: list[float] = self.toolbox.map([Score.of(one.mask, rung) for one in individuals])
        self._state.evaluations += len(scores)
        return scores

    def _score_all(self, individuals: Sequence[Individual]) -> None:
        for individual, fitness in zip(individuals, self._score(individuals), strict=True):
            self._value(individual, fitness)

    def _value(self, individual: Individual, fitness: float) -> None:
        """Set the DEAP fitness: the objective, and in a Pareto search the sparsity beside it."""
        sparsity = 1 - individual.genes.keep / self.plan.layout.total
        individual.fitness.values = (fitness,) if self.plan.most is None else (fitness, sparsity)

    def _judge(self, individuals: Sequence[Individual]) -> None:
        """Judge on the guard those that were not judged yet."""
        new = [one for one in _distinct(individuals) if one.key not in self._state.leaders]
        verdicts = self.toolbox.map([Judge.of(one.mask) for one in new])
        for individual, verdict in zip(new, verdicts, strict=True):
            self._state.leaders[individual.key] = (individual, verdict)

    def _record(self, started: float) -> None:
        state = self._state
        self.hall_of_fame.update(self.population)
        numbers = self.toolbox.describe(self.population)
        leader = tools.selBest(self.population, 1)[0]
        if numbers["best"] > state.best:
            state.best, state.gained = numbers["best"], state.generation
        record = Generation(
            generation=state.generation,
            evaluations=state.evaluations,
            seconds=time.monotonic() - started,
            best=float(numbers["best"]),
            mean=numbers["mean"],
            guard=state.leaders[leader.key][1].agreement,
            rates={**self._crossovers.probabilities, **self._mutations.probabilities},
        )
        self.logbook.record(**{key: value for key, value in vars(record).items() if key != "rates"})
        self.history.append(record)
        if self._report is not None:
            self._report(record)

    def _front(self) -> list[Individual]:
        if self.plan.most is None:
            return []
        front = tools.sortLogNondominated(self.population, len(self.population), True)
        return sorted(front, key=lambda one: one.genes.keep)

    def _choose(self, known: Mapping[str, Verdict]) -> tuple[Individual, Verdict]:
        """Pick the fittest on the guard among those that agree there at least like the baselines.

        Fitness tells candidates apart that agree on the same number of inputs, so it decides; the
        best baseline's agreement is the bar, which it meets itself.
        """
        asked = [one for one in self._state.leaders.values() if one[0].genes.keep == self.plan.keep]
        judged = asked or list(self._state.leaders.values())
        bar = max((known[one.key].agreement for one, _ in judged if one.key in known), default=0.0)
        eligible = [one for one in judged if one[1].agreement >= bar]
        return max(eligible or judged, key=lambda one: one[1].fitness)

    def _limit(self, started: float) -> str | None:
        plan, state = self.plan, self._state
        reached = {
            "generations": plan.generations is not None and state.generation >= plan.generations,
            "evaluations": plan.evaluations is not None and state.evaluations >= plan.evaluations,
            "seconds": plan.seconds is not None and time.monotonic() - started >= plan.seconds,
            "stagnation": plan.stagnation is not None
            and state.generation - state.gained >= plan.stagnation,
        }
        return next((name for name, met in reached.items() if met), None)


def _same(a: Individual, b: Individual) -> bool:
    return a.key == b.key


def _distinct(individuals: Sequence[Individual]) -> list[Individual]:
    """Drop individuals that express the same mask as an earlier one."""
    return list({one.key: one for one in reversed(individuals)}.values())[::-1]


@contextmanager
def _python_random(own: random.Random) -> Iterator[None]:
    """Let DEAP, which draws from Python's global generator, draw from `own` instead."""
    outside = random.getstate()
    random.setstate(own.getstate())
    try:
        yield
    finally:
        own.setstate(random.getstate())
        random.setstate(outside)
