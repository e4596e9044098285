"""The same seconds for everybody, without data: who finds the better mask, in how much memory?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.pace.contenders import compare
from benchmarks.pace.trial import Match, Score

EVOTORCH = "evotorch-"
WEIGHTS = Match("mnist-mlp", 0.95)
COUNTS = Match("mobile-student", 0.7, kinds=("procedural",))
ON_WEIGHTS = (
    "gaprune",
    "gaprune-black-box",
    "evotorch-snes-lamp",
    "evotorch-snes-random",
    "evotorch-ga-lamp",
    "evotorch-ga-random",
    "deap",
)
ON_COUNTS = ("gaprune-counts", "cma-counts")


def measure_equal_time(
    seconds: float = 60.0, match: Match = WEIGHTS, names: Sequence[str] = ON_WEIGHTS
) -> dict[str, Any]:
    """Search for a mask with gaprune, EvoTorch and DEAP: accuracies, and what they took.

    `gain` is gaprune's accuracy less that of the best other; `memory` the peak of its process
    over the smallest of the others'; `memory_above_start` the same without what torch, network and
    calibration inputs take. They are None where one of the others is missing.
    """
    found, missing = compare(names, replace(match, seconds=seconds))
    own = found.get("gaprune")
    evotorch = {
        name.removeprefix(EVOTORCH): score.accuracy
        for name, score in found.items()
        if name.startswith(EVOTORCH)
    }
    others = [score for name, score in found.items() if not name.startswith("gaprune")]
    sides = None if own is None or missing or not others else _sides(own, others)
    return {
        "equal_time": {
            "gaprune": None if own is None else own.accuracy,
            "evotorch": max(evotorch.values(), default=None),
            "deap": found["deap"].accuracy if "deap" in found else None,
            "evotorch_by_start": evotorch,
            **(sides or dict.fromkeys(("gain", "memory", "memory_above_start"))),
        },
        **_shared("equal_time", found, missing),
    }


def _sides(own: Score, others: Sequence[Score]) -> dict[str, float]:
    grown = min(one.peak_mb - one.before_mb for one in others)
    return {
        "gain": own.accuracy - max(one.accuracy for one in others),
        "memory": own.peak_mb / min(one.peak_mb for one in others),
        "memory_above_start": (own.peak_mb - own.before_mb) / grown if grown else float("inf"),
    }


def measure_density_search(
    seconds: float = 60.0, match: Match = COUNTS, names: Sequence[str] = ON_COUNTS
) -> dict[str, Any]:
    """Search for keep counts alone, with the allocation phase and with separable CMA-ES."""
    found, missing = compare(names, replace(match, seconds=seconds))
    return {
        "density_search": {
            name.removesuffix("-counts"): one.accuracy for name, one in found.items()
        },
        **_shared("density_search", found, missing),
    }


def _shared(
    part: str, found: Mapping[str, Score], missing: Mapping[str, str]
) -> dict[str, Mapping[str, Any]]:
    shared: dict[str, Mapping[str, Any]] = {
        f"{part}_found": {name: score._asdict() for name, score in found.items()},
        "peak_mb": {name: score.peak_mb for name, score in found.items()},
    }
    return shared | ({f"{part}_missing": missing} if missing else {})
