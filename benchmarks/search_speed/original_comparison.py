"""Speed of the original algorithm and of gaprune's presets on mnist-cnn.

The original scores candidates on the 10,000 labelled test images: this measures speed, not quality.
Searches without data never use these images; they are only measured between generations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cluster.searches import Search, make_search
from benchmarks.search_speed.original_algorithm import Original, OriginalCnn
from gaprune.config import make_settings
from gaprune.evaluation.evaluator import ValidationScore
from gaprune.evaluation.objectives import accuracy
from gaprune.evolution.engine import Evolution
from gaprune.evolution.genome import Individual
from gaprune.evolution.search_plan import SearchLimits
from gaprune.evolution.seeding import kaiming_population
from gaprune.models.forward import batched_forward
from gaprune.models.target import Target, load_target
from gaprune.models.zoo import load_zoo_network, mnist
from gaprune.runs.checkpointer import Checkpointer
from gaprune.runs.run import PruningRun
from gaprune.runs.setup import check_settings, resolve_settings
from gaprune.workers import SerialWorkers

NETWORK, SPARSITY, DENSITY = "mnist-cnn", 0.7, 0.3
GOAL = 0.89
EVALUATIONS = 34_300  # evaluations of the original until GOAL, as its author reports

Turn = Callable[[], int]
"""Runs one generation and returns how many candidates it scored."""


@dataclass(frozen=True)
class Workload:
    """The searches that are measured.

    Attributes:
        images: labelled images on which the original and `classic` score.
        population: population of both; the cost per candidate does not depend on it.
        offspring: children per generation with racing.
        steps: gradient steps per child of `default`; the cost per step does not depend on it.
        rounds: generations timed.
        calibration: number of calibration inputs of searches with racing.
        default: settings of the search whose time to 89 % is measured.
    """

    images: int = 10_000
    population: int = 4
    offspring: int = 16
    steps: int = 10
    rounds: int = 5
    calibration: int = 1024
    default: Mapping[str, Any] | None = None


FULL = Workload()


def measure_original(load: Workload = FULL) -> dict[str, Any]:
    """Compare candidates per second and the time to 89 %.

    `original_s` is extrapolated: 34,300 × seconds per evaluation.
    """
    speeds = measure_candidates(load)
    each = 1 / speeds["candidates_per_second"]["original"]
    seconds, accuracy_reached = time_to_goal(load.default or {})
    return {
        "time_to_89": {
            "original_s": EVALUATIONS * each,
            "original_s_is": f"extrapolated: {EVALUATIONS:,} evaluations of {each:.3g} s",
            "default_s": seconds,
            "default_accuracy": accuracy_reached,
            "ratio": None if seconds is None else EVALUATIONS * each / seconds,
        },
        **speeds,
    }


def measure_candidates(load: Workload = FULL) -> dict[str, Any]:
    """Compare candidates per second; the searches run one generation each in turn.

    `racing_ratio` counts children that race without gradient steps (preset black-box).
    `default_ratio` counts every gradient step as an evaluation, as runs report them.
    """
    rates = _rates(_turns(load), load.rounds)
    return {
        **{
            f"{name}_ratio": median(a / b for a, b in zip(rate, rates["original"], strict=True))
            for name, rate in rates.items()
            if name != "original"
        },
        "candidates_per_second": {name: median(rate) for name, rate in rates.items()},
    }


def _rates(turns: Mapping[str, Turn], rounds: int) -> dict[str, list[float]]:
    """Return candidates per second of every round; the order is reversed in every other round."""
    rates: dict[str, list[float]] = {name: [] for name in turns}
    for index in range(rounds):
        for name in sorted(turns, reverse=bool(index % 2)):
            started = time.perf_counter()
            count = turns[name]()
            rates[name].append(count / (time.perf_counter() - started))
    return rates


def _turns(load: Workload) -> dict[str, Turn]:
    """Return a function per search that runs one generation; the first ones are done."""
    labelled = {"calibration": ("labelled:mnist-test",), "calibration_count": load.images}
    population = {"population": load.population, "offspring": load.population}
    racing = {"offspring": load.offspring, "population": load.population}
    return {
        "original": _original(load),
        "classic": _generation(
            _kaiming(_search(preset="classic", **labelled, **population)), load.population
        ),
        "racing": _generation(
            _search(preset="black-box", calibration_count=load.calibration, **racing),
            load.offspring,
        ),
        "default": _generation(_search(steps=load.steps, calibration_count=load.calibration), None),
    }


def original_of(images: Tensor, labels: Tensor, population: int) -> Original:
    """Return the original algorithm on the trained network."""
    model = OriginalCnn(DENSITY)
    model.load_state_dict(
        load_zoo_network(NETWORK).state_dict(), strict=False
    )  # no scores in the checkpoint
    return Original(model, images, labels, population)


def _original(load: Workload) -> Turn:
    images, labels = (part[: load.images] for part in mnist.test_set())
    generations = original_of(images, labels, load.population).generations(np.random.default_rng(0))
    next(generations)
    return lambda: len(next(generations))


def _search(**settings: Any) -> Search:
    """Prepare a search that stops after scoring its first population."""
    return make_search(NETWORK, sparsity=SPARSITY, validation_count=2, evaluations=1, **settings)


def _kaiming(search: Search) -> Search:
    """Start from random scores, as the preset `classic` does."""
    generator = torch.Generator().manual_seed(0)
    layout, count = search.evaluator.layout, search.plan.population
    drawn = kaiming_population(layout, SPARSITY, "layer", count, generator)
    return replace(
        search, seeds=[Individual.from_genes(genes, layout, "kaiming") for genes in drawn]
    )


def _generation(search: Search, count: int | None) -> Turn:
    """Return a function that runs one generation.

    Args:
        search: its first population is scored here.
        count: candidates per generation; None counts evaluations as runs do.
    """
    evolution = Evolution(search.plan, SerialWorkers(search.evaluator))
    evolution.run(search.seeds)

    def turn() -> int:
        before = evolution.evaluations
        limits = SearchLimits(generations=evolution.generation + 1)
        evolution.plan = replace(search.plan, limits=limits)
        evolution.run([])
        return evolution.evaluations - before if count is None else count

    return turn


def time_to_goal(settings: Mapping[str, Any]) -> tuple[float | None, float]:
    """Run the default search without data until its best mask has `GOAL` on the test images.

    Returns:
        Seconds from before loading the network to the end of the generation that reaches `GOAL`,
        without the time for measuring accuracy, or None; and the last accuracy.
    """
    started = time.monotonic()
    target = load_target(NETWORK)
    watch = _Watch(target, started)
    chosen = make_settings({"sparsity": SPARSITY, **settings})
    try:
        resolved = resolve_settings(check_settings(chosen), target)
        PruningRun(target, resolved, checkpointer=watch).run()
    except _ReachedError:
        return watch.seconds, watch.accuracy
    return None, watch.accuracy


class _ReachedError(Exception):
    """Ends the run: `GOAL` is reached."""


class _Watch(Checkpointer):
    """Measures the accuracy of the best mask of every generation.

    Args:
        target: the dense network.
        started: start of the run on the monotonic clock.

    Attributes:
        accuracy: accuracy of the last best mask on the test images.
        seconds: time until then, without the time for measuring accuracy.
    """

    def __init__(self, target: Target, started: float) -> None:
        super().__init__()
        self._target, self._started, self._paused = target, started, 0.0
        self.accuracy, self.seconds = 0.0, 0.0

    def record_generation(
        self,
        evolution: Evolution,
        seeds: list[Individual],
        validation_scores: dict[str, ValidationScore],
        seconds: float,
    ) -> None:
        """Measure the accuracy of the best mask.

        Raises:
            _ReachedError: `GOAL` is reached.
        """
        del seeds, validation_scores, seconds
        now = time.monotonic()
        self.seconds = now - self._started - self._paused
        best = max(evolution.population, key=lambda individual: individual.search_fitness)
        model = self._target.masked_copy(evolution.plan.layout.split(best.mask))
        images, labels = mnist.test_set()
        outputs = batched_forward(model, images)
        self.accuracy = float(accuracy(outputs, outputs, labels))
        if self.accuracy >= GOAL:
            raise _ReachedError
        self._paused += time.monotonic() - now
