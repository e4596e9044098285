"""How long the original idea takes to get where the default search begins, on mnist-cnn.

Its 10,000 labelled images are the test images: this measures speed, and says nothing about quality
with them. Searches without data never see them; the clock looks at them between generations.
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
from benchmarks.pace.original import Original, OriginalCnn
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
from gaprune.runs.checkpointer import Checkpointer, SearchCheckpointer
from gaprune.runs.run import PruningRun
from gaprune.runs.setup import check_settings, resolve_settings
from gaprune.workers import SerialWorkers

NETWORK, SPARSITY, DENSITY = "mnist-cnn", 0.7, 0.3
GOAL = 0.89
EVALUATIONS = 34_300  # of the original until it has GOAL, as its author reports

Turn = Callable[[], int]
"""One generation; returns how many candidates it scored."""


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        images: labelled ones, on which the original and `classic` score.
        population: of both; what a candidate costs does not depend on it.
        offspring: of a generation that races.
        steps: gradient steps of a child of `default`; what one costs does not depend on it.
        rounds: generations of each.
        calibration inputs: inputs that score the candidates of searches that race.
        default: settings of the search whose time to 89 % is measured.
    """

    images: int = 10_000
    population: int = 4
    offspring: int = 16
    steps: int = 10
    rounds: int = 5
    calibration: int = 1024
    default: Mapping[str, Any] | None = None


WHOLE = Effort()


def measure_original(effort: Effort = WHOLE) -> dict[str, Any]:
    """Compare candidates per second and the times to 89 %.

    `original_s` is extrapolated: seconds per evaluation × 34,300.
    """
    speeds = measure_candidates(effort)
    each = 1 / speeds["candidates_per_second"]["original"]
    reached, found = time_to_goal(effort.default or {})
    return {
        "time_to_89": {
            "original_s": EVALUATIONS * each,
            "original_s_is": f"extrapolated: {EVALUATIONS:,} evaluations of {each:.3g} s",
            "default_s": reached,
            "default_accuracy": found,
            "ratio": None if reached is None else EVALUATIONS * each / reached,
        },
        **speeds,
    }


def measure_candidates(effort: Effort = WHOLE) -> dict[str, Any]:
    """Compare candidates per second, generation by generation in turn.

    `racing_ratio` counts children of the race of `default` that were bred without gradient steps
    (preset black-box); `default_ratio` is of `default` itself and counts every gradient step as an
    evaluation, as runs report them.
    """
    rates = _rates(_turns(effort), effort.rounds)
    return {
        **{
            f"{name}_ratio": median(a / b for a, b in zip(own, rates["original"], strict=True))
            for name, own in rates.items()
            if name != "original"
        },
        "candidates_per_second": {name: median(own) for name, own in rates.items()},
    }


def _rates(turns: Mapping[str, Turn], rounds: int) -> dict[str, list[float]]:
    """Return candidates per second of every round; the order turns with the rounds."""
    found: dict[str, list[float]] = {name: [] for name in turns}
    for index in range(rounds):
        for name in sorted(turns, reverse=bool(index % 2)):
            started = time.perf_counter()
            count = turns[name]()
            found[name].append(count / (time.perf_counter() - started))
    return found


def _turns(effort: Effort) -> dict[str, Turn]:
    """Return a generation of each; all have scored their first one already."""
    labelled = {"calibration": ("labelled:mnist-test",), "calibration_count": effort.images}
    people = {"population": effort.population, "offspring": effort.population}
    racing = {"offspring": effort.offspring, "population": effort.population}
    return {
        "original": _original(effort),
        "classic": _generation(
            _kaiming(_search(preset="classic", **labelled, **people)), effort.population
        ),
        "racing": _generation(
            _search(preset="black-box", calibration_count=effort.calibration, **racing),
            effort.offspring,
        ),
        "default": _generation(
            _search(steps=effort.steps, calibration_count=effort.calibration), None
        ),
    }


def original_of(images: Tensor, labels: Tensor, population: int) -> Original:
    """Return the original idea on the trained network, to be run on labelled images."""
    model = OriginalCnn(DENSITY)
    model.load_state_dict(load_zoo_network(NETWORK).state_dict(), strict=False)  # it has no scores
    return Original(model, images, labels, population)


def _original(effort: Effort) -> Turn:
    images, labels = (part[: effort.images] for part in mnist.test_set())
    one = original_of(images, labels, effort.population)
    generations = one.generations(np.random.default_rng(0))
    next(generations)
    return lambda: len(next(generations))


def _search(**settings: Any) -> Search:
    """Prepare a search; it stops when its first population is scored."""
    return make_search(NETWORK, sparsity=SPARSITY, validation_count=2, evaluations=1, **settings)


def _kaiming(search: Search) -> Search:
    """Begin with random scores, as the preset `classic` does."""
    generator = torch.Generator().manual_seed(0)
    layout, count = search.evaluator.layout, search.plan.population
    drawn = kaiming_population(layout, SPARSITY, "layer", count, generator)
    return replace(search, seeds=[Individual.from_genes(one, layout, "kaiming") for one in drawn])


def _generation(search: Search, count: int | None) -> Turn:
    """Return what does a generation; without a count, evaluations are counted as runs do."""
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
        Seconds from before the network is loaded to the end of the generation that has it, without
        those of looking; None where none has. And the accuracy then.
    """
    started = time.monotonic()
    target = load_target(NETWORK)
    watch = _Watch(target, started)
    chosen = make_settings({"sparsity": SPARSITY, **settings})
    try:
        resolved = resolve_settings(check_settings(chosen), target)
        PruningRun(target, resolved, checkpointer=_WatchedRun(watch)).run()
    except _ReachedError:
        return watch.seconds, watch.accuracy
    return None, watch.accuracy


class _ReachedError(Exception):
    """Ends the run: it has what was waited for."""


class _WatchedRun(Checkpointer):
    """Writes no checkpoints; the one search of the run is watched."""

    def __init__(self, watch: SearchCheckpointer) -> None:
        super().__init__()
        self._watch = watch

    def search(self, sparsity: float | None = None) -> SearchCheckpointer:
        """Return the watch."""
        del sparsity
        return self._watch


class _Watch(SearchCheckpointer):
    """Looks at the best mask of every generation instead of keeping it; steers only the end.

    Args:
        target: what is pruned.
        started: when, on the monotonic clock.

    Attributes:
        accuracy: of the last best mask on the test images.
        seconds: until then, without those of looking.
    """

    def __init__(self, target: Target, started: float) -> None:
        super().__init__()
        self._target, self._started, self._looked = target, started, 0.0
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
            _ReachedError: it is enough.
        """
        del seeds, validation_scores, seconds
        now = time.monotonic()
        self.seconds = now - self._started - self._looked
        best = max(evolution.population, key=lambda one: one.search_fitness)
        model = self._target.masked_copy(evolution.plan.layout.split(best.mask))
        images, labels = mnist.test_set()
        outputs = batched_forward(model, images)
        self.accuracy = float(accuracy(outputs, outputs, labels))
        if self.accuracy >= GOAL:
            raise _ReachedError
        self._looked += time.monotonic() - now
