"""Masks and peak memory of several optimizers without data, at the same time limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.search_speed.optimizers import compare_optimizers
from benchmarks.search_speed.timed_search import SearchProblem, SearchScore

EVOTORCH = "evotorch-"
WEIGHTS = SearchProblem("mnist-mlp", 0.95)
COUNTS = SearchProblem("mobile-student", 0.7, kinds=("procedural",))
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
    seconds: float = 60.0, problem: SearchProblem = WEIGHTS, names: Sequence[str] = ON_WEIGHTS
) -> dict[str, Any]:
    """Search for a mask with gaprune, EvoTorch and DEAP.

    `gain` is the accuracy of gaprune minus that of the best other library; `memory` is gaprune's
    peak memory over the smallest of the others; `memory_above_start` excludes the memory of torch,
    network and calibration inputs. They are None where any optimizer is missing.
    """
    scores, missing = compare_optimizers(names, replace(problem, seconds=seconds))
    gaprune = scores.get("gaprune")
    evotorch = {
        name.removeprefix(EVOTORCH): score.accuracy
        for name, score in scores.items()
        if name.startswith(EVOTORCH)
    }
    others = [score for name, score in scores.items() if not name.startswith("gaprune")]
    complete = gaprune is not None and others and not missing
    return {
        "equal_time": {
            "gaprune": None if gaprune is None else gaprune.accuracy,
            "evotorch": max(evotorch.values(), default=None),
            "deap": scores["deap"].accuracy if "deap" in scores else None,
            "evotorch_by_start": evotorch,
            **(
                _differences(gaprune, others)
                if complete and gaprune is not None
                else dict.fromkeys(("gain", "memory", "memory_above_start"))
            ),
        },
        **_details("equal_time", scores, missing),
    }


def _differences(gaprune: SearchScore, others: Sequence[SearchScore]) -> dict[str, float]:
    least = min(score.peak_mb - score.before_mb for score in others)
    growth = gaprune.peak_mb - gaprune.before_mb
    return {
        "gain": gaprune.accuracy - max(score.accuracy for score in others),
        "memory": gaprune.peak_mb / min(score.peak_mb for score in others),
        "memory_above_start": growth / least if least else float("inf"),
    }


def measure_density_search(
    seconds: float = 60.0, problem: SearchProblem = COUNTS, names: Sequence[str] = ON_COUNTS
) -> dict[str, Any]:
    """Search for keep counts with gaprune's density search and with separable CMA-ES."""
    scores, missing = compare_optimizers(names, replace(problem, seconds=seconds))
    return {
        "density_search": {
            name.removesuffix("-counts"): score.accuracy for name, score in scores.items()
        },
        **_details("density_search", scores, missing),
    }


def _details(
    part: str, scores: Mapping[str, SearchScore], missing: Mapping[str, str]
) -> dict[str, Mapping[str, Any]]:
    details: dict[str, Mapping[str, Any]] = {
        f"{part}_scores": {name: score._asdict() for name, score in scores.items()},
        "peak_mb": {name: score.peak_mb for name, score in scores.items()},
    }
    return details | ({f"{part}_missing": missing} if missing else {})
