"""How the cost of an evaluation and of a generation grows with the number of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.pace.clock import exponent, seconds_of
from benchmarks.real.process import in_own_process, peak_mb
from gaprune.config import make_settings
from gaprune.criteria import score
from gaprune.evolution.engine import Evolution
from gaprune.evolution.genome import Genes, Individual, seed_genes, to_storage
from gaprune.evolution.search_plan import SearchLimits
from gaprune.masks.supermask import Layout
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import target_from_module
from gaprune.runs.run import PruningRun
from gaprune.runs.setup import check_settings, resolve_settings
from gaprune.workers import SerialWorkers

INPUTS, CLASSES = 784, 10
WIDTHS = (200, 530, 1100, 2120, 4310)  # 0.2, 0.7, 2.1, 6.2 and 22 million weights
LARGEST = "22M-weights"  # in `peak_mb`
CHANGE = 0.01  # of the scores between the individuals of the first population, in ranks


@dataclass(frozen=True)
class Load:
    """What is measured at every size.

    Attributes:
        population: individuals, and children of the generation.
        steps: gradient steps of every child.
        calibration inputs: inputs that score the candidates.
        sparsity: fraction of weights removed.
        evaluations: of which the median is taken.
    """

    population: int = 16
    steps: int = 2
    calibration: int = 256
    sparsity: float = 0.9
    evaluations: int = 5


class Grown(NamedTuple):
    """What one size costs.

    Attributes:
        weights: prunable ones.
        evaluation_s: seconds to express and score one mask.
        generation_s: seconds to breed, refine, race and select one generation.
        start_mb: the most memory held until the network and the calibration inputs were there.
        evaluation_mb: the same after evaluations; scores had to be ranked before.
        peak_mb: the same after a generation.
    """

    weights: int
    evaluation_s: float
    generation_s: float
    start_mb: float
    evaluation_mb: float
    peak_mb: float


WHOLE = Load()


def measure_growth(widths: Sequence[int] = WIDTHS, load: Load = WHOLE) -> dict[str, Any]:
    """Measure networks 784-w-w-10 of growing width, each in a process with one thread.

    Exponents are of the number of weights, from the smallest to the largest; 1 is linear. That of
    memory is of what the search takes above torch, network and calibration inputs.
    """
    rows = [in_own_process(grow, width, load) for width in widths]
    sizes = [row.weights for row in rows]
    figures: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in Grown._fields}
    figures["exponent"] = {
        "evaluation_s": exponent(sizes, [row.evaluation_s for row in rows]),
        "generation_s": exponent(sizes, [row.generation_s for row in rows]),
        "peak_mb": exponent(sizes, [max(1.0, row.peak_mb - row.start_mb) for row in rows]),
    }
    peaks = {LARGEST: rows[-1].peak_mb} if widths[-1] == WIDTHS[-1] else {}
    return {"growth": figures, "peak_mb": peaks}


def grow(width: int, load: Load) -> Grown:
    """Measure one width in this process."""
    run = _run(width, load)
    evaluator, first = run.evaluator, peak_mb()
    genes = _genes(run)

    def evaluate(seed: int) -> float:
        """Return the seconds of a mask that was never scored: a known one is only looked up."""
        candidate = _changed(genes, evaluator.layout, -seed)
        return seconds_of(lambda: evaluator.fitness(candidate.decode(evaluator.layout)))

    each = [evaluate(1 + index) for index in range(1 + load.evaluations)][1:]
    middle = peak_mb()
    changed = (_changed(genes, evaluator.layout, index) for index in range(load.population))
    people = [Individual.from_genes(one, evaluator.layout, "magnitude") for one in changed]
    evolution = Evolution(run.plan, SerialWorkers(evaluator))
    evolution.run(people)
    del people
    limits = SearchLimits(generations=evolution.generation + 1)
    evolution.plan = replace(evolution.plan, limits=limits)
    generation = seconds_of(lambda: evolution.run([]))
    return Grown(evaluator.layout.total, median(each), generation, first, middle, peak_mb())


def _run(width: int, load: Load) -> PruningRun:
    model = nn.Sequential(
        nn.Linear(INPUTS, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, CLASSES),
    )
    options = InputOptions(shape=(INPUTS,), kind="vector", range=(0.0, 1.0))
    settings = {
        "sparsity": load.sparsity,
        "calibration": ("noise",),
        "validation": "noise",
        "calibration_count": load.calibration,
        "validation_count": 16,
        "population": load.population,
        "offspring": load.population,
        "steps": load.steps,
        "density_search": 0,
        "evaluations": 1,  # stops when the first population is scored; the generation is our own
    }
    target = target_from_module(model, inputs=options)
    checked = check_settings(make_settings(settings))
    return PruningRun(target, resolve_settings(checked, target))


def _genes(run: PruningRun) -> Genes:
    evaluator = run.evaluator
    network = evaluator.network
    scores = score("magnitude", network, None, torch.Generator())
    plan = run.plan
    return seed_genes(scores, evaluator.layout, plan.keep, "allocated")


def _changed(genes: Genes, layout: Layout, seed: int) -> Genes:
    """Return genes with scores that are a little different, as a search would hold them."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(layout.total, generator=generator)
    return to_storage(genes.with_scores(noise.mul_(CHANGE).add_(genes.scores)), layout)
