"""What a user would take instead: EvoTorch and plain DEAP, each on one flat score vector.

Every candidate keeps the top k of its scores and is scored by the same function. Algorithms and
rates are those of the libraries' own examples; step lengths are the best for this problem of those
tried (`benchmarks/README.md`).
"""

from __future__ import annotations

import logging
import random
import warnings
from typing import Any

import torch
from deap import algorithms, base, tools
from torch import Tensor

from benchmarks.pace.trial import Trial
from gaprune.models.sources.optional_packages import import_extra

POPULATION = 50
CENTRE_STEP = 0.03  # SNES: first standard deviation, in score ranks
GENE_STEP, GENE_RATE = 0.05, 0.05  # Gaussian mutation: deviation, and part of the genes
CROSSED, MUTATED, TOURNAMENT = 0.5, 0.2, 3  # DEAP's examples


def snes(trial: Trial, start: Tensor, seed: int, step: float = CENTRE_STEP) -> None:
    """EvoTorch's SNES (Schaul et al. 2011); its centre is scored after every step as well."""
    found = _evotorch("algorithms")
    searcher = found.SNES(_problem(trial, seed), stdev_init=step, center_init=start.clone())
    trial.fitness(start)
    while not trial.over:
        searcher.step()
        trial.fitness(searcher.status["center"])


def evotorch_ga(trial: Trial, start: Tensor, seed: int, step: float = GENE_STEP) -> None:
    """EvoTorch's genetic algorithm: tournaments, one-point crossover, Gaussian mutation, elites.

    The first population holds the start and mutants of it. Parents are not scored again, as
    EvoTorch does unless told otherwise: fitness is no random variable here.
    """
    trial.fitness(start)
    problem, operators = _problem(trial, seed), _evotorch("operators")
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
    while not trial.over:
        searcher.step()


class Genome(list[float]):
    """A DEAP individual: a plain list with a fitness."""

    def __init__(self, genes: list[float]) -> None:
        super().__init__(genes)
        self.fitness = _Fitness()


class _Fitness(base.Fitness):  # type: ignore[misc]  # deap carries no type hints
    weights = (1.0,)


def deap_lists(trial: Trial, start: Tensor, seed: int, step: float = GENE_STEP) -> None:
    """DEAP as its documentation begins: lists, `eaSimple`'s loop, one-point, Gaussian, tournament.

    The first population holds the start and mutants of it.
    """
    trial.fitness(start)
    random.seed(seed)  # DEAP draws from it; this process is the search's own
    toolbox = base.Toolbox()
    toolbox.register("mate", tools.cxOnePoint)
    toolbox.register("mutate", tools.mutGaussian, mu=0.0, sigma=step, indpb=GENE_RATE)
    toolbox.register("select", tools.selTournament, tournsize=TOURNAMENT)
    genes = start.tolist()
    people = [Genome(genes), *(toolbox.mutate(Genome(genes))[0] for _ in range(POPULATION - 1))]
    _grade(trial, people)
    while not trial.over:
        people = algorithms.varAnd(toolbox.select(people, POPULATION), toolbox, CROSSED, MUTATED)
        _grade(trial, people)


def _grade(trial: Trial, people: list[Genome]) -> None:
    for one in people:
        if not one.fitness.valid and not trial.over:
            one.fitness.values = (trial.fitness(torch.tensor(one)),)


def _problem(trial: Trial, seed: int) -> Any:  # noqa: ANN401 - EvoTorch is not always there
    """Return the search for scores as EvoTorch describes problems."""
    return _evotorch().Problem(
        "max",
        lambda scores: torch.tensor(trial.fitness(scores)),
        solution_length=trial.layout.total,
        initial_bounds=(0.0, 1.0),
        seed=seed,
    )


def _evotorch(part: str | None = None) -> Any:  # noqa: ANN401 - a module
    """Import EvoTorch, or one of its parts.

    Raises:
        GapruneError: it is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # it compiles functions as torch once did
        package = import_extra("evotorch", "bench", "equal-time")
        logging.getLogger("evotorch").setLevel(logging.WARNING)
        return package if part is None else import_extra(f"evotorch.{part}", "bench", "equal-time")
