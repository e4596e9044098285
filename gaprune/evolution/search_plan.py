"""What a search is given, when it stops, and what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from gaprune.evaluation.evaluator import ValidationScore
from gaprune.evolution.genome import Fitness, Individual, ParetoFitness
from gaprune.evolution.gradient import Refinement
from gaprune.evolution.presets import Preset, as_density_search, as_warmup
from gaprune.masks.supermask import Layout
from gaprune.records import Generation

WARMUP, DENSITY_SEARCH, SEARCH = "warmup", "density_search", "search"
MIN_DENSITY_OFFSPRING = 16  # children per generation of the density search, at least
FRONT_BUDGETS = 5  # budgets at which every seed starts a Pareto search
OVERFIT_DROP = 0.02  # validation agreement that the leader loses when a search overfits


@dataclass(frozen=True)
class SearchLimits:
    """When to stop; None is no limit.

    Attributes:
        generations: after the initial population.
        evaluations: candidates scored; every gradient step counts as one.
        seconds: duration of the search. The number of generations then depends on the machine,
            so this is the one limit under which a seed does not determine the masks.
        stagnation: generations without a better fitness.
        patience: consecutive generations whose leader is at least `OVERFIT_DROP` below an earlier
            leader in validation agreement: the search overfits its calibration inputs. Like
            `stagnation`, it counts from the start of the main phase.
    """

    generations: int | None = None
    evaluations: int | None = None
    seconds: float | None = None
    stagnation: int | None = None
    patience: int | None = None

    def reached(
        self, generation: int, evaluations: int, seconds: float, stagnant: int, overfit: int
    ) -> str | None:
        """Return the name of the first limit reached (`validation` for patience), or None."""
        pairs = {
            "generations": (generation, self.generations),
            "evaluations": (evaluations, self.evaluations),
            "seconds": (seconds, self.seconds),
            "stagnation": (stagnant, self.stagnation),
            "validation": (overfit, self.patience),
        }
        return next(
            (
                name
                for name, (value, limit) in pairs.items()
                if limit is not None and value >= limit
            ),
            None,
        )


def overfit_generations(agreements: Sequence[float]) -> int:
    """Count the last generations whose leader is `OVERFIT_DROP` below an earlier leader.

    Args:
        agreements: validation agreement of the leader of every generation.
    """
    best, count = 0.0, 0
    for agreement in agreements:
        best = max(best, agreement)
        count = count + 1 if best - agreement >= OVERFIT_DROP else 0
    return count


@dataclass(frozen=True)
class SearchPhase:
    """Consecutive generations whose children are made in the same way.

    Attributes:
        name: `warmup` (gradient steps from the repaired to the strict network), `density_search`
            (keep counts of the layers only) or `search` (all operators).
        preset: operators and their options.
        offspring: children per generation.
        refinement: gradient steps of every child, or None.
        start: generations before the phase.
        length: its generations, or None: until a limit is reached.
    """

    name: str
    preset: Preset
    offspring: int
    refinement: Refinement | None
    start: int
    length: int | None

    def progress(self, generation: int) -> float:
        """Return the fraction of the phase that is over after a generation; 0 without a length."""
        if not self.length:
            return 0.0
        return min(1.0, (generation - self.start) / self.length)


@dataclass(frozen=True)
class SearchPlan:
    """Everything that the search needs besides seeds and workers.

    Attributes:
        preset: operators, selection and survival.
        layout: the prunable layers of the network.
        seed: of every random choice.
        population, offspring: survivors and children per generation.
        refinement: gradient steps of the main phase, or None.
        limits: when to stop.
        keep: requested budget, see `Genes`.
        most: in a Pareto search, budgets range from `keep` to `most`; else None.
        density_search: generations that change keep counts only, before the main phase.
        warmup: gradient steps of the one generation of the warm-up, or None. It requires an
            evaluator with `GuidedForward`.
        group: masks scored in one forward pass; 1 scores each by itself.
    """

    preset: Preset
    layout: Layout
    seed: int
    population: int
    offspring: int
    refinement: Refinement | None
    limits: SearchLimits
    keep: int
    most: int | None = None
    density_search: int = 0
    warmup: Refinement | None = None
    group: int = 1

    @cached_property
    def phases(self) -> tuple[SearchPhase, ...]:
        """The phases in order: warm-up and density search if planned, then the main search."""
        phases: list[SearchPhase] = []
        if self.warmup is not None:
            preset = as_warmup(self.preset)
            phases.append(SearchPhase(WARMUP, preset, self.offspring, self.warmup, 0, 1))
        start, total = len(phases) + self.density_search, self.limits.generations
        if self.density_search:
            preset = as_density_search(self.preset)
            offspring = max(MIN_DENSITY_OFFSPRING, self.offspring)
            phases.append(
                SearchPhase(
                    DENSITY_SEARCH, preset, offspring, None, len(phases), self.density_search
                )
            )
        length = None if total is None else max(0, total - start)
        main = SearchPhase(SEARCH, self.preset, self.offspring, self.refinement, start, length)
        return *phases, main

    def phase(self, generation: int) -> SearchPhase:
        """Return the phase of a generation; the initial population counts to the first phase."""
        for phase in self.phases[:-1]:
            if phase.length is not None and generation <= phase.start + phase.length:
                return phase
        return self.phases[-1]

    def new_fitness(self) -> Fitness | ParetoFitness:
        """Return an unset DEAP fitness of the kind that this search compares."""
        return Fitness() if self.most is None else ParetoFitness()

    def initial_individuals(self, seeds: Sequence[Individual]) -> list[Individual]:
        """Return the seeds; in a Pareto search at several budgets, evenly spaced on a log scale."""
        if self.most is None:
            return list(seeds)
        ratio = (self.most / self.keep) ** (1 / (FRONT_BUDGETS - 1))
        budgets = [round(self.keep * ratio**step) for step in range(FRONT_BUDGETS)]
        individuals = []
        for keep in budgets:
            for seed in seeds:
                genes = replace(seed.genes, keep=keep, counts=None)
                individual = Individual.from_genes(genes, self.layout, seed.origin)
                individual.fitness = self.new_fitness()
                individuals.append(individual)
        return individuals


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
        best: the candidate that scores best on the validation inputs among all leaders.
        validation_score: its score there.
        population: the last population.
        hall_of_fame: the individuals of the highest fitness ever, without genes.
        front: non-dominated individuals, sparsest first (Pareto search only).
        validation_scores: mask key → validation score of every leader and every seed.
        history: one record per generation.
        stopped: `generations`, `evaluations`, `seconds`, `stagnation`, `validation` or
            `interrupted`.
        evaluations: candidates scored; every gradient step counts as one.
        seconds: duration of the search.
    """

    best: Individual
    validation_score: ValidationScore
    population: list[Individual]
    hall_of_fame: list[Individual]
    front: list[Individual]
    validation_scores: dict[str, ValidationScore]
    history: list[Generation]
    stopped: str
    evaluations: int
    seconds: float
