"""Alternatives to gaprune: EvoTorch and plain DEAP, each on one flat score vector.

Every candidate keeps the top k of its scores and is scored by the same function. Algorithms and
rates are those of the libraries' examples; step lengths are the best of those tried on this
problem (`benchmarks/README.md`).
"""

from __future__ import annotations

import logging
import random
import warnings
from typing import Any

import torch
from deap import algorithms, base, tools
from torch import Tensor

from benchmarks.search_speed.timed_search import TimedSearch
from gaprune.models.sources.optional_packages import import_extra

POPULATION = 50
CENTRE_STEP = 0.03  # SNES: first standard deviation, in score ranks
GENE_STEP, GENE_RATE = 0.05, 0.05  # Gaussian mutation: deviation and rate per gene
CROSSED, MUTATED, TOURNAMENT = 0.5, 0.2, 3  # DEAP's examples


def snes(timed: TimedSearch, start: Tensor, seed: int, step: float = CENTRE_STEP) -> None:
    """Run EvoTorch's SNES (Schaul et al. 2011) and score its centre after every step."""
    searcher = _evotorch("algorithms").SNES(
        _problem(timed, seed), stdev_init=step, center_init=start.clone()
    )
    timed.fitness(start)
    while not timed.over:
        searcher.step()
        timed.fitness(searcher.status["center"])


def evotorch_ga(timed: TimedSearch, start: Tensor, seed: int, step: float = GENE_STEP) -> None:
    """Run EvoTorch's genetic algorithm: tournament, one-point crossover, Gaussian mutation, elites.

    The first population holds the start and its mutants. Parents are not scored again
    (`re_evaluate=False`), since the fitness is deterministic.
    """
    timed.fitness(start)
    problem, operators = _problem(timed, seed), _evotorch("operators")
    searcher = _evotorch("algorithms").GeneticAlgorithm(
        problem,
        operators=[
            operators.OnePointCrossOver(problem, tournament_size=TOURNAMENT),
            operators.GaussianMutation(problem, stdev=step, mutation_probability=GENE_RATE),
        ],
        popsize=POPULATION,
        re_evaluate=False,
    )
    generator = torch.Generator().manual_seed(seed)
    size = (POPULATION, len(start))
    noise = step * torch.randn(size, generator=generator)
    noise[torch.rand(size, generator=generator) >= GENE_RATE] = 0
    noise[0] = 0
    searcher.population.set_values(noise.add_(start))
    del noise
    while not timed.over:
        searcher.step()


class Genome(list[float]):
    """A DEAP individual: a plain list with a fitness."""

    def __init__(self, genes: list[float]) -> None:
        super().__init__(genes)
        self.fitness = _Fitness()


class _Fitness(base.Fitness):  # type: ignore[misc]  # deap carries no type hints
    weights = (1.0,)


def deap_lists(timed: TimedSearch, start: Tensor, seed: int, step: float = GENE_STEP) -> None:
    """Run DEAP as in its introduction: lists, the loop of `eaSimple`, tournament selection.

    The first population holds the start and its mutants.
    """
    timed.fitness(start)
    random.seed(seed)  # DEAP draws from the global generator; this process runs nothing else
    toolbox = base.Toolbox()
    toolbox.register("mate", tools.cxOnePoint)
    toolbox.register("mutate", tools.mutGaussian, mu=0.0, sigma=step, indpb=GENE_RATE)
    toolbox.register("select", tools.selTournament, tournsize=TOURNAMENT)
    genes = start.tolist()
    population = [Genome(genes), *(toolbox.mutate(Genome(genes))[0] for _ in range(POPULATION - 1))]
    _evaluate(timed, population)
    while not timed.over:
        population = algorithms.varAnd(
            toolbox.select(population, POPULATION), toolbox, CROSSED, MUTATED
        )
        _evaluate(timed, population)


def _evaluate(timed: TimedSearch, population: list[Genome]) -> None:
    for individual in population:
        if not individual.fitness.valid and not timed.over:
            individual.fitness.values = (timed.fitness(torch.tensor(individual)),)


def _problem(timed: TimedSearch, seed: int) -> Any:  # noqa: ANN401 - EvoTorch is optional
    """Return the search for scores as an EvoTorch problem."""
    return _evotorch().Problem(
        "max",
        lambda scores: torch.tensor(timed.fitness(scores)),
        solution_length=timed.layout.total,
        initial_bounds=(0.0, 1.0),
        seed=seed,
    )


def _evotorch(part: str | None = None) -> Any:  # noqa: ANN401 - a module
    """Import EvoTorch or one of its modules.

    Raises:
        GapruneError: it is not installed.
    """
    with warnings.catch_warnings():
        # EvoTorch uses a deprecated torch API when it is imported.
        warnings.simplefilter("ignore", DeprecationWarning)
        package = import_extra("evotorch", "bench", "equal-time")
        logging.getLogger("evotorch").setLevel(logging.WARNING)
        return package if part is None else import_extra(f"evotorch.{part}", "bench", "equal-time")
