"""What a search is told before it starts, when it stops, and what it returns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from gaprune.evaluation.evaluator import ValidationScore
from gaprune.evolution.archive import Remembered
from gaprune.evolution.genome import Fitness, Individual, ParetoFitness
from gaprune.evolution.gradient import Refinement
from gaprune.evolution.phases import DENSITY_SEARCH, SEARCH, WARMUP, SearchPhase
from gaprune.evolution.presets import Preset, as_density_search, as_warmup
from gaprune.masks.supermask import Layout
from gaprune.records import Generation

ALLOCATORS = 16  # children per generation of the allocation phase, at least
FRONT_SEEDS = 5  # budgets at which every baseline starts a Pareto search
PARTED = 0.02  # agreement on the validation inputs lost between the best there and the leader of the search


@dataclass(frozen=True)
class SearchLimits:
    """When to stop; None is no limit.

    Attributes:
        generations: so many after the seeded one.
        evaluations: candidates scored; every gradient step counts as one.
        seconds: of the search. How far a search comes then depends on the machine, so this is the
            one limit under which a seed does not fix the masks.
        stagnation: generations without a better fitness.
        patience: generations in a row whose leader agrees on the validation inputs at least `PARTED` less than
            an earlier one: the search then learns its own calibration inputs. Like those of stagnation, they
            are counted from where the search phase begins.
    """

    generations: int | None = None
    evaluations: int | None = None
    seconds: float | None = None
    stagnation: int | None = None
    patience: int | None = None

    def reached(
        self, generation: int, evaluations: int, seconds: float, idle: int, parted: int
    ) -> str | None:
        """Return the name of the first limit that is met (`validation` for patience), or None."""
        now = {
            "generations": (generation, self.generations),
            "evaluations": (evaluations, self.evaluations),
            "seconds": (seconds, self.seconds),
            "stagnation": (idle, self.stagnation),
            "validation": (parted, self.patience),
        }
        met = (name for name, (value, limit) in now.items() if limit is not None and value >= limit)
        return next(met, None)


def parted_for(validation: Iterable[float]) -> int:
    """Count the last generations whose leader agrees `PARTED` less than an earlier leader.

    Args:
        validation: agreement of every generation's leader on the validation inputs.
    """
    best, parted = 0.0, 0
    for agreement in validation:
        best = max(best, agreement)
        parted = parted + 1 if best - agreement >= PARTED else 0
    return parted


@dataclass(frozen=True)
class SearchPlan:
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
        density_search: of the generations, those before the search that change keep counts alone.
        warmup: the steps of one generation before all others, or None: from what the best
            seed after repair answers then to what it answers without. It needs a guided evaluator.
        group: masks that are scored in one forward pass; 1 scores each alone.
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
        """How the generations are divided: out of repair, keep counts, then everything."""
        found: list[SearchPhase] = []
        if self.warmup is not None:
            preset = as_warmup(self.preset)
            found.append(SearchPhase(WARMUP, preset, self.offspring, self.warmup, 0, 1))
        before, total = len(found) + self.density_search, self.limits.generations
        if self.density_search:
            preset, children = as_density_search(self.preset), max(ALLOCATORS, self.offspring)
            found.append(
                SearchPhase(DENSITY_SEARCH, preset, children, None, len(found), self.density_search)
            )
        rest = None if total is None else max(0, total - before)
        search = SearchPhase(SEARCH, self.preset, self.offspring, self.refinement, before, rest)
        return *found, search

    @property
    def before(self) -> int:
        """The generations before the search phase."""
        return self.phases[-1].start

    def phase(self, generation: int) -> SearchPhase:
        """Return the phase of a generation; the seeded one, 0, counts to the first."""
        return next((one for one in self.phases if one.holds(generation)), self.phases[-1])

    def starts(self, seeds: Sequence[Individual]) -> list[Individual]:
        """Return the seeds; in a Pareto search at several budgets, evenly spaced in logarithm."""
        if self.most is None:
            return list(seeds)
        ratio = (self.most / self.keep) ** (1 / (FRONT_SEEDS - 1))
        budgets = [round(self.keep * ratio**step) for step in range(FRONT_SEEDS)]
        return [self.adopt(one.at_budget(n, self.layout)) for n in budgets for one in seeds]

    @property
    def fitness(self) -> type[Fitness | ParetoFitness]:
        """The kind of DEAP fitness that this search compares."""
        return Fitness if self.most is None else ParetoFitness

    def adopt(self, individual: Individual) -> Individual:
        """Return a seed with the kind of DEAP fitness that this search compares."""
        one = individual
        return Individual(
            one.genes, self.layout, one.origin, one.learning_rate, self.fitness, one.bits
        )


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        best: the candidate that does best on the validation inputs among those that led the search.
        validation_score: how it does there.
        population: the last one.
        hall_of_fame: the best ever on the search calibration inputs.
        front: non-dominated individuals, sparsest first (Pareto only).
        judged: mask key → how it did on the validation inputs, for all that led the search and the seeds.
        history: one record per generation.
        stopped: `generations`, `evaluations`, `seconds`, `stagnation`, `validation` or `interrupted`.
        evaluations: candidates scored; every gradient step counts as one.
        seconds: of the search alone.
    """

    best: Individual
    validation_score: ValidationScore
    population: list[Individual]
    hall_of_fame: list[Remembered]
    front: list[Individual]
    judged: dict[str, ValidationScore]
    history: list[Generation]
    stopped: str
    evaluations: int
    seconds: float
