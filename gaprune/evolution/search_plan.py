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
    """When to stop; None is no limit. Time is the limit of the whole run, see `TimeLimit`."""

    generations: int | None = None  # after the initial population
    evaluations: int | None = None  # candidates scored; every gradient step counts as one
    stagnation: int | None = None  # generations without a better fitness
    # Consecutive generations that overfit the calibration inputs, see `overfit_generations`. Like
    # `stagnation`, it counts from the start of the main phase.
    patience: int | None = None

    def reached(self, generation: int, evaluations: int, stagnant: int, overfit: int) -> str | None:
        """Return the name of the first limit reached (`validation` for patience), or None."""
        pairs = {
            "generations": (generation, self.generations),
            "evaluations": (evaluations, self.evaluations),
            "stagnation": (stagnant, self.stagnation),
            "validation": (overfit, self.patience),
        }
        reached = (n for n, (value, limit) in pairs.items() if limit is not None and value >= limit)
        return next(reached, None)


def overfit_generations(agreements: Sequence[float]) -> int:
    """Count the last generations whose leader is `OVERFIT_DROP` below an earlier leader."""
    best, count = 0.0, 0
    for agreement in agreements:
        best = max(best, agreement)
        count = count + 1 if best - agreement >= OVERFIT_DROP else 0
    return count


@dataclass(frozen=True)
class SearchPhase:
    """Consecutive generations whose children are made in the same way."""

    # `warmup`: gradient steps from the repaired to the strict network; `density_search`: only the
    # keep counts of the layers change; `search`: all operators
    name: str
    preset: Preset  # operators and their options
    offspring: int  # children per generation
    refinement: Refinement | None  # gradient steps of every child
    start: int  # generations before the phase
    length: int | None  # its generations; None: until a limit is reached

    def progress(self, generation: int) -> float:
        """Return the fraction of the phase that is over after a generation; 0 without a length."""
        if not self.length:
            return 0.0
        return min(1.0, (generation - self.start) / self.length)


@dataclass(frozen=True)
class SearchPlan:
    """Everything that the search needs besides seeds and workers."""

    preset: Preset  # operators, selection and survival
    layout: Layout  # the prunable layers of the network
    seed: int  # of every random choice
    population: int  # survivors per generation
    offspring: int  # children per generation
    refinement: Refinement | None  # gradient steps of the main phase
    limits: SearchLimits
    keep: int  # requested budget, see `Genes`
    most: int | None = None  # in a Pareto search, budgets range from `keep` to `most`
    density_search: int = 0  # generations that change keep counts only, before the main phase
    density_swaps: str | None = None  # what refines their children, see `Preset.swaps`
    # gradient steps of the one generation of the warm-up; its evaluator needs a `GuidedForward`
    warmup: Refinement | None = None
    group: int = 1  # masks scored in one forward pass; 1 scores each by itself

    @cached_property
    def phases(self) -> tuple[SearchPhase, ...]:
        """The phases in order: warm-up and density search if planned, then the main search."""
        phases: list[SearchPhase] = []
        if self.warmup is not None:
            preset = as_warmup(self.preset)
            phases.append(SearchPhase(WARMUP, preset, self.offspring, self.warmup, 0, 1))
        start, total = len(phases) + self.density_search, self.limits.generations
        if self.density_search:
            preset = as_density_search(self.preset, self.density_swaps)
            offspring = max(MIN_DENSITY_OFFSPRING, self.offspring)
            density = (len(phases), self.density_search)
            phases.append(SearchPhase(DENSITY_SEARCH, preset, offspring, None, *density))
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
                if seed.genes is None:
                    continue
                genes = replace(seed.genes, keep=keep, counts=None)
                individual = Individual.from_genes(genes, self.layout, seed.origin)
                individual.fitness = self.new_fitness()
                individuals.append(individual)
        return individuals


@dataclass(frozen=True)
class SearchResult:
    """The result of a search; histories and counters are those of `Evolution`."""

    best: Individual  # scores best on the validation inputs among all leaders
    validation_score: ValidationScore  # its score there
    population: list[Individual]  # the last one
    front: list[Individual]  # non-dominated individuals, sparsest first (Pareto search only)
    validation_scores: dict[str, ValidationScore]  # of every leader and every seed, by mask key
    history: list[Generation]
    # `generations`, `evaluations`, `seconds`, `stagnation`, `validation` or `interrupted`
    stopped: str
    evaluations: int
    seconds: float
