"""How much faster two actors are than one, and what an evaluation costs the driver."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from statistics import median
from typing import Any

import torch

from benchmarks.cluster.own_ray import own_ray, wait_for_all
from benchmarks.cluster.searches import Search, make_search
from gaprune.workers import RayWorkers, SerialWorkers, WorkerOptions

HEAVY: dict[str, Any] = {
    "target": "mnist-cnn",
    "steps": 10,
    "batch_cache": 16,  # all drawn before what is measured begins
    "offspring": 16,
    "generations": 1,
    "calibration_count": 256,
    "validation_count": 256,
}
BLACK_BOX: dict[str, Any] = {"target": "mnist-cnn", "preset": "black-box", "generations": 1}
ROUNDS = 3


@dataclass(frozen=True)
class Pass:
    """One search, measured.

    Attributes:
        seconds: it took.
        cpu: seconds of all threads of the driver.
        evaluations: candidates scored; every gradient step counts as one.
    """

    seconds: float
    cpu: float
    evaluations: int


def measure_speed(heavy: dict[str, Any] = HEAVY, rounds: int = ROUNDS) -> dict[str, Any]:
    """Compare one actor with two, turn by turn, and both with processes that share nothing.

    `hardware_2` is what the same search gains from a second process without gaprune's workers: no
    number of actors can gain more on this machine, as it is and as busy as it is.
    """
    search = make_search(**heavy)
    with (
        own_ray(4),
        RayWorkers(search.evaluator, WorkerOptions(1)) as one,
        RayWorkers(search.evaluator, WorkerOptions(2)) as two,
    ):
        for workers in (one, two):
            wait_for_all(workers)
            watch(search, workers)  # once for what is made or loaded at first
        pairs = [_pair(search, one, two, turn) for turn in range(1, rounds + 1)]
    alone, both = (median(rate(p) for p in column) for column in zip(*pairs, strict=True))
    return {
        "speedup_2": median(rate(b) / rate(a) for a, b in pairs),
        "evaluations_per_second_1": alone,
        "evaluations_per_second_2": both,
        "hardware_2": hardware(heavy, rounds),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "driver_ms": 1e3 * median(b.cpu / b.evaluations for _, b in pairs),
    }


def measure_black_box(light: dict[str, Any] = BLACK_BOX) -> dict[str, float]:
    """Measure where the driver has most to do: one answer per evaluation, and short ones."""
    search = make_search(**light)
    with own_ray(2), RayWorkers(search.evaluator, WorkerOptions(2)) as workers:
        wait_for_all(workers)
        found = watch(search, workers)
    return {
        "black_box_driver_ms": 1e3 * found.cpu / found.evaluations,
    }


def watch(search: Search, workers: RayWorkers, turn: int = 0) -> Pass:
    """Run a search and measure it."""
    cpu, started = time.process_time(), time.perf_counter()
    outcome = search.run(workers, turn)
    return Pass(
        time.perf_counter() - started,
        time.process_time() - cpu,
        outcome.evaluations,
    )


def _pair(search: Search, one: RayWorkers, two: RayWorkers, turn: int) -> tuple[Pass, Pass]:
    """Watch both, now the one first and now the other: a machine's speed drifts."""
    if turn % 2:
        second = watch(search, two, turn)
        return watch(search, one, turn), second
    return watch(search, one, turn), watch(search, two, turn)


def rate(one: Pass) -> float:
    """Return evaluations per second."""
    return one.evaluations / one.seconds


def hardware(heavy: dict[str, Any], rounds: int) -> float:
    """Return how much more two bare processes do in the same time than one."""
    context = get_context("spawn")
    both, queue = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=_alternate, args=(index, heavy, rounds, both, queue), daemon=True)
        for index in range(2)
    ]
    for process in processes:
        process.start()
    found = dict(queue.get() for _ in processes)
    for process in processes:
        process.join()
    alone = [found[turn % 2][turn][0] for turn in range(rounds)]
    together = [max(found[index][turn][1] for index in range(2)) for turn in range(rounds)]
    gains: list[float] = [2 * a / t for a, t in zip(alone, together, strict=True)]
    return median(gains)


def _alternate(index: int, heavy: dict[str, Any], rounds: int, both: Barrier, queue: Any) -> None:  # noqa: ANN401 - multiprocessing's
    """Search alone while the other waits, then at the same time as the other."""
    torch.set_num_threads(1)
    search = make_search(**heavy)
    workers = SerialWorkers(search.evaluator)
    search.run(workers)
    times = []
    for turn in range(rounds):
        both.wait()
        alone = _seconds(search, workers, 2 * turn + 1) if turn % 2 == index else 0.0
        both.wait()
        times.append((alone, _seconds(search, workers, 2 * turn + 2)))
    queue.put((index, times))


def _seconds(search: Search, workers: SerialWorkers, turn: int) -> float:
    started = time.perf_counter()
    search.run(workers, turn)
    return time.perf_counter() - started
