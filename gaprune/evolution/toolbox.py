"""The DEAP toolbox of a search: selection, survival, statistics, and where tasks run."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from deap import base, tools

from gaprune.evolution.genome import Individual
from gaprune.evolution.presets import Preset
from gaprune.workers import Workers


def roulette(individuals: Sequence[Individual], k: int) -> list[Individual]:
    """Draw `k` individuals with probability proportional to fitness."""
    worst = min(individual.search_fitness for individual in individuals)
    if worst > 0:  # DEAP's roulette needs that; otherwise the distance from the worst counts
        return list(tools.selRoulette(individuals, k))
    # epsilon: if all are equal, all weights would be 0
    weights = [i.search_fitness - worst + sys.float_info.epsilon for i in individuals]
    return random.choices(individuals, weights, k=k)


SELECTIONS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "tournament": (tools.selTournament, {"tournsize": 2}),
    "roulette": (roulette, {}),
    "random": (tools.selRandom, {}),
}
SURVIVALS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "best": (tools.selBest, {}),
    "nsga2": (tools.selNSGA2, {"nd": "log"}),
}


def make_toolbox(preset: Preset, workers: Workers) -> base.Toolbox:
    """Return a toolbox with `select`, `survive`, `map`, `fetch` and `describe`."""
    toolbox = base.Toolbox()
    select, options = SELECTIONS[preset.selection]
    toolbox.register("select", select, **options)
    survive, options = SURVIVALS[preset.survival]
    toolbox.register("survive", survive, **options)
    toolbox.register("map", workers.run)
    toolbox.register("fetch", workers.fetch)
    statistics = tools.Statistics(lambda individual: individual.search_fitness)
    statistics.register("best", max)
    statistics.register("mean", lambda values: float(np.mean(values)))
    toolbox.register("describe", statistics.compile)
    return toolbox


def unique(individuals: Sequence[Individual]) -> list[Individual]:
    """Drop individuals that have the same mask as an earlier one."""
    first: dict[str, Individual] = {}
    for individual in individuals:
        first.setdefault(individual.key, individual)
    return list(first.values())


@contextmanager
def python_random(source: random.Random) -> Iterator[None]:
    """Make DEAP, which uses Python's global generator, draw from `source`."""
    outside = random.getstate()
    random.setstate(source.getstate())
    try:
        yield
    finally:
        source.setstate(random.getstate())
        random.setstate(outside)
