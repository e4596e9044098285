"""The DEAP toolbox of a search: selection, survival, statistics, and where tasks run."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from deap import base, tools

from gaprune.evolution.archive import Remembered
from gaprune.evolution.genome import Individual
from gaprune.evolution.offspring import Newborn
from gaprune.evolution.presets import Preset
from gaprune.workers import Workers

Contender = Individual | Newborn
C = TypeVar("C", bound=Contender)


def roulette(individuals: Sequence[Individual], k: int) -> list[Individual]:
    """Draw `k` with chances in proportion to fitness, by DEAP.

    DEAP's wheel needs fitness above 0; otherwise the chances are the heights above the worst.
    """
    worst = min(one.quality for one in individuals)
    if worst > 0:
        return list(tools.selRoulette(individuals, k))
    heights = [one.quality - worst + sys.float_info.epsilon for one in individuals]
    return random.choices(individuals, heights, k=k)


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
    """Return what the search calls by name: select, survive, map, fetch, describe."""
    toolbox = base.Toolbox()
    select, options = SELECTIONS[preset.selection]
    survive, rules = SURVIVALS[preset.survival]
    toolbox.register("select", select, **options)
    toolbox.register("survive", survive, **rules)
    toolbox.register("map", workers.run)
    toolbox.register("fetch", workers.fetch)
    statistics = tools.Statistics(lambda individual: individual.quality)
    statistics.register("best", max)
    statistics.register("mean", lambda values: float(np.mean(values)))
    toolbox.register("describe", statistics.compile)
    return toolbox


def same(a: Remembered, b: Remembered) -> bool:
    """Tell whether two express the same mask."""
    return a.key == b.key


def distinct(individuals: Sequence[C]) -> list[C]:
    """Drop individuals that express the same mask as an earlier one."""
    first: dict[str, C] = {}
    for one in individuals:
        first.setdefault(one.key, one)
    return list(first.values())


@contextmanager
def python_random(own: random.Random) -> Iterator[None]:
    """Let DEAP, which draws from Python's global generator, draw from `own` instead."""
    outside = random.getstate()
    random.setstate(own.getstate())
    try:
        yield
    finally:
        own.setstate(random.getstate())
        random.setstate(outside)
