"""The optimizers compared at equal time, each run in its own process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

from torch import Tensor

from benchmarks.isolated_process import peak_mb, run_isolated
from benchmarks.search_speed.keep_counts import cma_counts, evolved_counts
from benchmarks.search_speed.other_libraries import deap_lists, evotorch_ga, snes
from benchmarks.search_speed.timed_search import (
    SearchProblem,
    SearchScore,
    TimedSearch,
    keep_count,
    lamp_ranks,
    random_ranks,
    score_mask,
)
from gaprune.callbacks import Observer
from gaprune.errors import GapruneError
from gaprune.records import Generation
from gaprune.runs.run import PruningRun


@dataclass(frozen=True)
class Optimizer:
    """A search for masks.

    Attributes:
        search: solves a problem and returns the score of the best mask.
        package: optional package of the extra `bench` that it needs, or None.
    """

    search: Callable[[SearchProblem], SearchScore]
    package: str | None = None


def gaprune(preset: str) -> Callable[[SearchProblem], SearchScore]:
    """Return a complete search of gaprune; its one-shot masks count towards the time limit."""

    def search(problem: SearchProblem) -> SearchScore:
        limit = _TimeLimit(problem.seconds)
        run = problem.run(limit, preset=preset, seconds=problem.seconds)
        before_mb = peak_mb()
        limit.start()
        result = run.run()
        memory = peak_mb(), before_mb
        mask = run.evaluator.layout.flatten(dict(result.masks))
        seconds = limit.seconds or result.seconds  # no generation may have ended in time
        return score_mask(run.evaluator, mask, result.evaluations, seconds, memory)

    return search


class _TimeLimit(Observer):
    """Stops a run between two generations, as Ctrl-C does, once the time limit has passed.

    Attributes:
        seconds: time from the start to the end of the last generation.
    """

    def __init__(self, limit: float) -> None:
        self._limit, self._started, self.seconds = limit, 0.0, 0.0

    def start(self) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def generation(self, record: Generation, total: int | None) -> None:
        """Check the clock.

        Raises:
            KeyboardInterrupt: the time limit has passed.
        """
        del record, total
        self.seconds = time.monotonic() - self._started
        if self.seconds >= self._limit:
            raise KeyboardInterrupt


def on_score_vector(
    optimize: Callable[[TimedSearch, Tensor, int], None], start: Callable[[PruningRun], Tensor]
) -> Callable[[SearchProblem], SearchScore]:
    """Return the search of another library over one flat score vector.

    Args:
        optimize: runs the library from initial scores and a seed.
        start: returns the initial scores `[total]`.
    """

    def search(problem: SearchProblem) -> SearchScore:
        run = problem.run()
        scores = start(run)
        timed = TimedSearch(run.evaluator, problem.seconds, keep_count(run))
        optimize(timed, scores, problem.seed)
        return timed.score()

    return search


OPTIMIZERS: dict[str, Optimizer] = {
    "gaprune": Optimizer(gaprune("default")),
    "gaprune-black-box": Optimizer(gaprune("black-box")),
    "evotorch-snes-lamp": Optimizer(on_score_vector(snes, lamp_ranks), "evotorch"),
    "evotorch-snes-random": Optimizer(on_score_vector(snes, random_ranks), "evotorch"),
    "evotorch-ga-lamp": Optimizer(on_score_vector(evotorch_ga, lamp_ranks), "evotorch"),
    "evotorch-ga-random": Optimizer(on_score_vector(evotorch_ga, random_ranks), "evotorch"),
    "deap": Optimizer(on_score_vector(deap_lists, lamp_ranks)),
    "gaprune-counts": Optimizer(evolved_counts),
    "cma-counts": Optimizer(cma_counts, "cma"),
}


def run_optimizer(name: str, problem: SearchProblem) -> SearchScore:
    """Run one optimizer in this process."""
    return OPTIMIZERS[name].search(problem)


def compare_optimizers(
    names: Sequence[str], problem: SearchProblem
) -> tuple[Mapping[str, SearchScore], Mapping[str, str]]:
    """Run optimizers one after the other, each in a process with one thread.

    A generation of gaprune may end after the time limit; later optimizers then get as much time.

    Returns:
        Name → score; name → why there is no score.
    """
    scores: dict[str, SearchScore] = {}
    missing: dict[str, str] = {}
    for name in names:
        package = OPTIMIZERS[name].package
        if package is not None and find_spec(package) is None:
            missing[name] = f"needs {package}; pip install 'gaprune[bench]'"
            continue
        try:
            scores[name] = run_isolated(run_optimizer, name, problem)
        except GapruneError as error:
            missing[name] = str(error)
            continue
        if name.startswith("gaprune"):
            problem = replace(problem, seconds=max(problem.seconds, scores[name].seconds))
    return scores, missing
