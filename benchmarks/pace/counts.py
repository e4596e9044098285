"""Keep counts as the search space: CMA-ES beside the allocation phase, both from LAMP's counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.pace.trial import Match, Score, Trial, kept, lamp_ranks, scored
from benchmarks.real.process import peak_mb
from gaprune.evolution.engine import Evolution
from gaprune.evolution.genome import Genes, Individual, seed_genes
from gaprune.masks.budget import apportion
from gaprune.models.sources.optional_packages import import_extra
from gaprune.runs.run import PruningRun
from gaprune.workers import SerialWorkers

STEP = 0.3  # first standard deviation of the logarithm of a keep count
FOR_EVER = 1_000_000  # generations; the clock ends it


def cma_counts(match: Match) -> Score:
    """Separable CMA-ES (Ros and Hansen 2008) over the logarithms of the layers' keep counts."""
    cma = import_extra("cma", "bench", "density_search")
    run = match.run()
    genes, layout = _genes(run), run.evaluator.layout
    trial = Trial(run.evaluator, match.seconds, kept(run))

    def loss(change: NDArray[np.float64]) -> float:
        shares = np.asarray(genes.counts) * np.exp(change)
        counts = apportion(shares, genes.keep, layout.sizes, layout.min_counts)
        return -trial.mask_fitness(replace(genes, counts=tuple(counts)).decode(layout))

    options = {"CMA_diagonal": True, "seed": match.seed + 1, "verbose": -9}  # 0 is the time
    search = cma.CMAEvolutionStrategy(np.zeros(len(layout.sizes)), STEP, options)
    loss(np.zeros(len(layout.sizes)))
    while not trial.over and not search.stop():
        asked = search.ask()
        search.tell(asked, [loss(one) for one in asked])
    return trial.score()


def evolved_counts(match: Match) -> Score:
    """The allocation phase of gaprune alone, with LAMP as its only seed."""
    run = match.run(density_search=FOR_EVER, generations=0, seconds=match.seconds)
    evaluator = run.evaluator
    seed = Individual.from_genes(_genes(run), evaluator.layout, "lamp")
    before = peak_mb()
    plan = run.plan
    outcome = Evolution(plan, SerialWorkers(evaluator)).run([seed])
    memory = peak_mb(), before
    return scored(evaluator, outcome.best.mask, outcome.evaluations, outcome.seconds, memory)


def _genes(run: PruningRun) -> Genes:
    """Return LAMP's order with LAMP's counts."""
    scores: Tensor = lamp_ranks(run)
    return seed_genes(scores, run.evaluator.layout, kept(run), "allocated")
