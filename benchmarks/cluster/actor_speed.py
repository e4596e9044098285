"""Speed-up of two actors over one, and the driver's cost per evaluation."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from statistics import median
from typing import Any

import torch

from benchmarks.cluster.local_ray import local_ray, wait_for_all
from benchmarks.cluster.searches import Search, make_search
from gaprune.workers import SerialWorkers, WorkerOptions
from gaprune.workers.ray_pool import RayWorkers

HEAVY: dict[str, Any] = {
    "target": "mnist-cnn",
    "steps": 10,
    "batch_cache": 16,  # all batches are drawn before the measurement
    "offspring": 16,
    "generations": 1,
    "calibration_count": 256,
    "validation_count": 256,
}
BLACK_BOX: dict[str, Any] = {"target": "mnist-cnn", "preset": "black-box", "generations": 1}
ROUNDS = 3


@dataclass(frozen=True)
class SearchCost:
    """The cost of one search.

    Attributes:
        seconds: wall time.
        cpu: processor time of all threads of the driver, seconds.
        evaluations: candidates scored; every gradient step counts as one.
    """

    seconds: float
    cpu: float
    evaluations: int


def measure_speed(heavy: dict[str, Any] = HEAVY, rounds: int = ROUNDS) -> dict[str, Any]:
    """Compare one actor with two in turn, and with two independent processes.

    `hardware_2` is the speed-up of two independent processes that run the same search: the upper
    limit for two actors on this machine under its current load.
    """
    search = make_search(**heavy)
    with (
        local_ray(4),
        RayWorkers(search.evaluator, WorkerOptions(1)) as single,
        RayWorkers(search.evaluator, WorkerOptions(2)) as double,
    ):
        for workers in (single, double):
            wait_for_all(workers)
            measure_search(search, workers)  # warm up
        pairs = [_pair(search, single, double, turn) for turn in range(1, rounds + 1)]
    rates = [median(map(rate, column)) for column in zip(*pairs, strict=True)]
    return {
        "speedup_2": median(rate(b) / rate(a) for a, b in pairs),
        "evaluations_per_second_1": rates[0],
        "evaluations_per_second_2": rates[1],
        "hardware_2": hardware(heavy, rounds),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "driver_ms": 1e3 * median(b.cpu / b.evaluations for _, b in pairs),
    }


def measure_black_box(light: dict[str, Any] = BLACK_BOX) -> dict[str, float]:
    """Measure the driver where it has most work: one short task per evaluation."""
    search = make_search(**light)
    with local_ray(2), RayWorkers(search.evaluator, WorkerOptions(2)) as workers:
        wait_for_all(workers)
        cost = measure_search(search, workers)
    return {"black_box_driver_ms": 1e3 * cost.cpu / cost.evaluations}


def measure_search(search: Search, workers: RayWorkers, turn: int = 0) -> SearchCost:
    """Run a search and return its cost."""
    cpu, started = time.process_time(), time.perf_counter()
    outcome = search.run(workers, turn)
    return SearchCost(
        time.perf_counter() - started,
        time.process_time() - cpu,
        outcome.evaluations,
    )


def _pair(
    search: Search, single: RayWorkers, double: RayWorkers, turn: int
) -> tuple[SearchCost, SearchCost]:
    """Measure both; every other turn in reverse order, since a machine's speed drifts."""
    if turn % 2:
        second = measure_search(search, double, turn)
        return measure_search(search, single, turn), second
    return measure_search(search, single, turn), measure_search(search, double, turn)


def rate(cost: SearchCost) -> float:
    """Return evaluations per second."""
    return cost.evaluations / cost.seconds


def hardware(heavy: dict[str, Any], rounds: int) -> float:
    """Return the speed-up of two independent processes over one."""
    context = get_context("spawn")
    both, queue = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=_alternate, args=(index, heavy, rounds, both, queue), daemon=True)
        for index in range(2)
    ]
    for process in processes:
        process.start()
    times = dict(queue.get() for _ in processes)
    for process in processes:
        process.join()
    alone = [times[turn % 2][turn][0] for turn in range(rounds)]
    together = [max(times[index][turn][1] for index in range(2)) for turn in range(rounds)]
    gains: list[float] = [2 * a / t for a, t in zip(alone, together, strict=True)]
    return median(gains)


def _alternate(index: int, heavy: dict[str, Any], rounds: int, both: Barrier, queue: Any) -> None:  # noqa: ANN401 - multiprocessing's
    """Search while the other process waits, then at the same time as the other."""
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
