"""What a search is told before it starts, when it stops, and what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gaprune.bench import Verdict
from gaprune.evolution.genome import Fitness, Individual, ParetoFitness
from gaprune.evolution.gradient import Refinement
from gaprune.evolution.presets import Preset
from gaprune.records import Generation
from gaprune.supermask import Layout

FRONT_SEEDS = 5  # budgets at which every baseline starts a Pareto search


@dataclass(frozen=True)
class Limits:
    """When to stop; None is no limit.

    Attributes:
        generations: so many after the seeded one.
        evaluations: candidates scored; every gradient step counts as one.
        seconds: of the search. How far a search comes then depends on the machine, so this is the
            one limit under which a seed does not fix the masks.
        stagnation: generations without a better fitness.
    """

    generations: int | None = None
    evaluations: int | None = None
    seconds: float | None = None
    stagnation: int | None = None

    def reached(self, generation: int, evaluations: int, seconds: float, idle: int) -> str | None:
        """Return the name of the first limit that is met, or None."""
        now = {
            "generations": (generation, self.generations),
            "evaluations": (evaluations, self.evaluations),
            "seconds": (seconds, self.seconds),
            "stagnation": (idle, self.stagnation),
        }
        met = (name for name, (value, limit) in now.items() if limit is not None and value >= limit)
        return next(met, None)


@dataclass(frozen=True)
class Plan:
    """Everything that the engine needs to know beside the genes.

    Attributes:
        preset: operators and survival.
        layout: the network's prunable layers.
        seed: of every random choice.
        population, offspring: survivors and children per generation.
        refinement: length of gradient steps, or None.
        limits: when to stop.
        keep: the asked number of kept weights.
        most: with a Pareto search, children keep from `keep` to `most` weights; else None.
    """

    preset: Preset
    layout: Layout
    seed: int
    population: int
    offspring: int
    refinement: Refinement | None
    limits: Limits
    keep: int
    most: int | None = None

    def starts(self, seeds: Sequence[Individual]) -> list[Individual]:
        """Return the seeds; in a Pareto search at several budgets, evenly spaced in logarithm."""
        if self.most is None:
            return list(seeds)
        ratio = (self.most / self.keep) ** (1 / (FRONT_SEEDS - 1))
        budgets = [round(self.keep * ratio**step) for step in range(FRONT_SEEDS)]
        return [self.adopt(one.at_budget(n, self.layout)) for n in budgets for one in seeds]

    def adopt(self, individual: Individual) -> Individual:
        """Return a seed with the kind of DEAP fitness that this search compares."""
        kind = Fitness if self.most is None else ParetoFitness
        return Individual(individual.genes, self.layout, individual.origin, individual.rate, kind)


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Attributes:
        best: the candidate that does best on the guard among those that led the search.
        verdict: how it does there.
        population: the last one.
        hall_of_fame: the best ever on the search probes.
        front: non-dominated individuals, sparsest first (Pareto only).
        judged: mask key → how it did on the guard, for all that led the search and the seeds.
        history: one record per generation.
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
