"""Growth of the cost of an evaluation and of a generation with the number of weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import log
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.isolated_process import peak_mb, run_isolated
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
CHANGE = 0.01  # standard deviation between the first individuals' scores, in ranks


@dataclass(frozen=True)
class Workload:
    """The search that is measured at every size.

    Attributes:
        population: individuals, and children per generation.
        steps: gradient steps per child.
        calibration: number of calibration inputs.
        sparsity: fraction of weights removed.
        evaluations: evaluations timed; the median counts.
    """

    population: int = 16
    steps: int = 2
    calibration: int = 256
    sparsity: float = 0.9
    evaluations: int = 5


class SizeCost(NamedTuple):
    """Cost at one network size.

    Attributes:
        weights: number of prunable weights.
        evaluation_s: seconds to decode and score one mask.
        generation_s: seconds to breed, refine, race and select one generation.
        start_mb: peak memory once the network and the calibration inputs exist, MB.
        evaluation_mb: peak memory after the evaluations.
        peak_mb: peak memory after a generation.
    """

    weights: int
    evaluation_s: float
    generation_s: float
    start_mb: float
    evaluation_mb: float
    peak_mb: float


FULL = Workload()


def measure_growth(widths: Sequence[int] = WIDTHS, load: Workload = FULL) -> dict[str, Any]:
    """Measure networks 784-w-w-10 of growing width, each in a process with one thread.

    An exponent is the power of the number of weights with which a cost grows from the smallest to
    the largest network; 1 is linear. The exponent of memory excludes torch, network and inputs.
    """
    rows = [run_isolated(measure_size, width, load) for width in widths]
    sizes = [row.weights for row in rows]
    figures: dict[str, Any] = {
        name: [getattr(row, name) for row in rows] for name in SizeCost._fields
    }
    figures["exponent"] = {
        "evaluation_s": exponent(sizes, [row.evaluation_s for row in rows]),
        "generation_s": exponent(sizes, [row.generation_s for row in rows]),
        "peak_mb": exponent(sizes, [max(1.0, row.peak_mb - row.start_mb) for row in rows]),
    }
    peaks = {LARGEST: rows[-1].peak_mb} if widths[-1] == WIDTHS[-1] else {}
    return {"growth": figures, "peak_mb": peaks}


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return p of cost ∝ size^p between the first and the last size."""
    return log(costs[-1] / costs[0]) / log(sizes[-1] / sizes[0])


def seconds_of(call: Callable[[], object]) -> float:
    """Return the duration of a call in seconds."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure_size(width: int, load: Workload) -> SizeCost:
    """Measure one width in this process."""
    run = _run(width, load)
    evaluator, first = run.evaluator, peak_mb()
    genes = _genes(run)

    def evaluate(seed: int) -> float:
        # A new mask every time: the evaluator caches the fitness of masks it has scored.
        candidate = _changed(genes, evaluator.layout, -seed)
        return seconds_of(lambda: evaluator.fitness(candidate.decode(evaluator.layout)))

    each = [evaluate(1 + index) for index in range(1 + load.evaluations)][1:]
    middle = peak_mb()
    changed = (_changed(genes, evaluator.layout, index) for index in range(load.population))
    population = [
        Individual.from_genes(variant, evaluator.layout, "magnitude") for variant in changed
    ]
    evolution = Evolution(run.plan, SerialWorkers(evaluator))
    evolution.run(population)
    del population
    limits = SearchLimits(generations=evolution.generation + 1)
    evolution.plan = replace(evolution.plan, limits=limits)
    generation = seconds_of(lambda: evolution.run([]))
    return SizeCost(evaluator.layout.total, median(each), generation, first, middle, peak_mb())


def _run(width: int, load: Workload) -> PruningRun:
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
        "evaluations": 1,  # stop after the first population; `measure_size` times one generation
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
    """Return genes with slightly changed scores, as a search holds them."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(layout.total, generator=generator)
    return to_storage(genes.with_scores(noise.mul_(CHANGE).add_(genes.scores)), layout)
