"""The search: breed, race, select, judge, generation after generation, over a DEAP toolbox."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np
import torch
from deap import base, tools

from gaprune.bench import Verdict
from gaprune.evolution.breeding import Breed, Child, Judge, Score, derive_seed
from gaprune.evolution.genome import Individual
from gaprune.evolution.plan import Limits, Outcome, Plan, parted_for
from gaprune.evolution.recipes import RecipeBook
from gaprune.records import Generation
from gaprune.workers import Workers

__all__ = ["Evolution", "Limits", "Outcome", "Plan"]

HALL_OF_FAME = 8
FIRST_RUNG, LAST_RUNG = 0, -1


def roulette(individuals: Sequence[Individual], k: int) -> list[Individual]:
    """Draw `k` with chances in proportion to fitness, by DEAP.

    DEAP's wheel needs fitness above 0; otherwise the chances are the heights above the worst.
    """
    worst = min(one.quality for one in individuals)
    if worst > 0:
        return list(tools.selRoulette(individuals, k))
    heights = [one.quality - worst + sys.float_info.epsilon for one in individuals]
    return random.choices(individuals, heights, k=k)


SELECTIONS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "tournament": (tools.selTournament, {"tournsize": 2}),
    "roulette": (roulette, {}),
    "random": (tools.selRandom, {}),
}
SURVIVALS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "best": (tools.selBest, {}),
    "nsga2": (tools.selNSGA2, {"nd": "log"}),
}


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
        self._report = report
        self._state = _State()
        self._random = random.Random(derive_seed(plan.seed, "selection"))
        self._recipes = {phase.name: RecipeBook(plan, phase) for phase in plan.phases}
        self._started = time.monotonic()
        self.population: list[Individual] = []
        self.hall_of_fame = tools.HallOfFame(HALL_OF_FAME, similar=_same)
        self.logbook = tools.Logbook()
        self.history: list[Generation] = []
        self.toolbox = _make_toolbox(plan, workers)

    def run(
        self, seeds: Sequence[Individual], verdicts: Mapping[str, Verdict] | None = None
    ) -> Outcome:
        """Search from seeds until a limit of the plan is met.

        Args:
            seeds: the first population is drawn from the best of them.
            verdicts: mask key → how it does on the guard, where that is known.

        An interrupt (Ctrl-C) ends the search; what was found until then is returned.
        """
        self._started = time.monotonic()
        try:
            self._begin(seeds, verdicts or {})
            while (stopped := self._limit()) is None:
                self.step()
                self._record()
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
            front=[one for one in self._front() if one.key in self._state.leaders],
            judged={key: verdict for key, (_, verdict) in self._state.leaders.items()},
            history=self.history,
            stopped=stopped,
            evaluations=self._state.evaluations,
            seconds=time.monotonic() - self._started,
        )

    def step(self) -> None:
        """Run one generation: breed, race, survive, judge."""
        self._state.generation += 1
        preset = self.plan.preset
        children = self._breed()
        if preset.races:
            fastest = sorted(children, key=lambda child: -child.sprint)
            children = fastest[: ceil(len(children) / 2)]
            self._score(children)
        contenders = [*self.population, *children] if preset.elitist else children
        self.population = self.toolbox.survive(_distinct(contenders), self.plan.population)
        self._judge(self._front() or tools.selBest(self.population, 1))

    def _begin(self, seeds: Sequence[Individual], verdicts: Mapping[str, Verdict]) -> None:
        seeds = self.plan.starts(seeds)
        for one in seeds:
            if one.key in verdicts:
                self._state.leaders[one.key] = (one, verdicts[one.key])
        self._score(seeds)
        first = self._evaluate(seeds, FIRST_RUNG) if self.plan.preset.races else None
        for index, one in enumerate(seeds):
            one.sprint = first[index] if first else one.quality
        self.population = self.toolbox.survive(_distinct(seeds), self.plan.population)
        self._judge(self._front() or tools.selBest(self.population, 1))
        self._record()

    def _breed(self) -> list[Individual]:
        plan, number = self.plan, self._state.generation
        phase = plan.phase(number)
        recipes = self._recipes[phase.name]
        generator = torch.Generator().manual_seed(derive_seed(plan.seed, "vary", number))
        with _python_random(self._random):
            parents = self.toolbox.select(self.population, 2 * phase.offspring)
        pairs = list(zip(parents[::2], parents[1::2], strict=True))
        drawn = [recipes.draw(pair, number, generator) for pair in pairs]
        tasks = [
            Breed(
                (a.genes,) if recipe.crossover is None else (a.genes, b.genes),
                recipe,
                derive_seed(plan.seed, "child", number, index),
                FIRST_RUNG if plan.preset.races else LAST_RUNG,
            )
            for index, ((a, b), (recipe, _)) in enumerate(zip(pairs, drawn, strict=True))
        ]
        bred: list[Child] = self.toolbox.map(tasks)
        children = []
        for pair, (recipe, rate), child in zip(pairs, drawn, bred, strict=True):
            steps = recipe.refinement.steps if recipe.refinement else 0
            self._state.evaluations += 1 + steps
            recipes.learn(recipe, improved=child.fitness > max(one.sprint for one in pair))
            children.append(self._born(child, "+".join(recipe.operators) or "copy", rate))
        return children

    def _born(self, child: Child, origin: str, rate: float) -> Individual:
        individual = self.plan.adopt(Individual(child.genes, self.plan.layout, origin, rate))
        individual.sprint = child.fitness
        self._value(individual, child.fitness)
        return individual

    def _evaluate(self, individuals: Sequence[Individual], rung: int) -> list[float]:
        tasks = [Score.of(one.mask, rung) for one in individuals]
        self._state.evaluations += len(tasks)
        return list(self.toolbox.map(tasks))

    def _score(self, individuals: Sequence[Individual]) -> None:
        for one, fitness in zip(individuals, self._evaluate(individuals, LAST_RUNG), strict=True):
            self._value(one, fitness)

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

    def _record(self) -> None:
        state = self._state
        phase = self.plan.phase(state.generation).name
        self.hall_of_fame.update(self.population)
        numbers = self.toolbox.describe(self.population)
        leader = tools.selBest(self.population, 1)[0]
        if numbers["best"] > state.best:
            state.best, state.gained = numbers["best"], state.generation
        record = Generation(
            generation=state.generation,
            evaluations=state.evaluations,
            seconds=time.monotonic() - self._started,
            best=numbers["best"],
            mean=numbers["mean"],
            guard=state.leaders[leader.key][1].agreement,
            rates=self._recipes[phase].rates,
            phase=phase,
        )
        self.logbook.record(**vars(record))
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
        leaders = list(self._state.leaders.values())
        judged = [pair for pair in leaders if pair[0].genes.keep == self.plan.keep] or leaders
        bar = max((known[one.key].agreement for one, _ in judged if one.key in known), default=0.0)
        eligible = [pair for pair in judged if pair[1].agreement >= bar]
        return max(eligible, key=lambda pair: pair[1].fitness)

    def _limit(self) -> str | None:
        state = self._state
        parted = parted_for(record.guard for record in self.history)
        return self.plan.limits.reached(
            generation=state.generation,
            evaluations=state.evaluations,
            seconds=time.monotonic() - self._started,
            idle=state.generation - max(state.gained, self.plan.allocation),
            parted=min(parted, state.generation - self.plan.allocation),  # it hands on its leader
        )


def _make_toolbox(plan: Plan, workers: Workers) -> base.Toolbox:
    toolbox = base.Toolbox()
    select, options = SELECTIONS[plan.preset.selection]
    survive, rules = SURVIVALS[plan.preset.survival]
    toolbox.register("select", select, **options)
    toolbox.register("survive", survive, **rules)
    toolbox.register("map", workers.run)
    statistics = tools.Statistics(lambda individual: individual.quality)
    statistics.register("best", max)
    statistics.register("mean", lambda values: float(np.mean(values)))
    toolbox.register("describe", statistics.compile)
    return toolbox


def _same(a: Individual, b: Individual) -> bool:
    return a.key == b.key


def _distinct(individuals: Sequence[Individual]) -> list[Individual]:
    """Drop individuals that express the same mask as an earlier one."""
    first: dict[str, Individual] = {}
    for one in individuals:
        first.setdefault(one.key, one)
    return list(first.values())


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
