"""Layer-wise density search: CMA-ES and gaprune's density search, both from LAMP's keep counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.isolated_process import peak_mb
from benchmarks.search_speed.timed_search import (
    SearchProblem,
    SearchScore,
    TimedSearch,
    keep_count,
    lamp_ranks,
    score_mask,
)
from gaprune.evolution.engine import Evolution
from gaprune.evolution.genome import Genes, Individual, seed_genes
from gaprune.masks.budget import apportion
from gaprune.models.sources.optional_packages import import_extra
from gaprune.models.time_limit import TimeLimit
from gaprune.runs.run import PruningRun
from gaprune.workers import SerialWorkers

STEP = 0.3  # first standard deviation of the logarithm of a keep count
UNLIMITED = 1_000_000  # generations; the time limit ends the search


def cma_counts(problem: SearchProblem) -> SearchScore:
    """Run separable CMA-ES (Ros and Hansen 2008) over the logarithms of the keep counts."""
    cma = import_extra("cma", "bench", "density_search")
    run = problem.run()
    genes, layout = _lamp_genes(run), run.evaluator.layout
    timed = TimedSearch(run.evaluator, problem.seconds, keep_count(run))

    def loss(change: NDArray[np.float64]) -> float:
        shares = np.asarray(genes.counts) * np.exp(change)
        counts = apportion(shares, genes.keep, layout.sizes, layout.min_counts)
        return -timed.mask_fitness(replace(genes, counts=tuple(counts)).decode(layout))

    # CMA-ES reads seed 0 as "seed from the clock".
    options = {"CMA_diagonal": True, "seed": problem.seed + 1, "verbose": -9}
    strategy = cma.CMAEvolutionStrategy(np.zeros(len(layout.sizes)), STEP, options)
    loss(np.zeros(len(layout.sizes)))
    while not timed.over and not strategy.stop():
        candidates = strategy.ask()
        strategy.tell(candidates, [loss(candidate) for candidate in candidates])
    return timed.score()


def evolved_counts(problem: SearchProblem) -> SearchScore:
    """Run gaprune's density search alone, with LAMP as its only seed."""
    run = problem.run(density_search=UNLIMITED, generations=0)
    evaluator = run.evaluator
    seed = Individual.from_genes(_lamp_genes(run), evaluator.layout, "lamp")
    plan = run.plan
    before_mb = peak_mb()
    with TimeLimit(problem.seconds).active(evaluator.network.model):
        outcome = Evolution(plan, SerialWorkers(evaluator)).run([seed])
    memory = peak_mb(), before_mb
    return score_mask(evaluator, outcome.best.mask, outcome.evaluations, outcome.seconds, memory)


def _lamp_genes(run: PruningRun) -> Genes:
    """Return genes with LAMP's order and LAMP's keep counts."""
    return seed_genes(lamp_ranks(run), run.evaluator.layout, keep_count(run), "allocated")
