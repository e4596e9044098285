"""Utilisation of 64 actors that only sleep: it measures the overhead of the driver."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import ray

from benchmarks.cluster.local_ray import SleepTask, local_ray, wait_for_all
from gaprune.workers import WorkerOptions
from gaprune.workers.actor import Actor
from gaprune.workers.ray_pool import RayWorkers
from gaprune.workers.transport import pack_task

SLEEP = 0.05  # seconds
PROCESSES = 2


@dataclass(frozen=True)
class SleepingActors:
    """Actors that sleep for every evaluation.

    Attributes:
        count: number of actors that the driver manages.
        each: evaluations per actor and round.
        rounds: rounds; the best one counts, since other load only lowers the utilisation.
    """

    count: int = 64
    each: int = 120
    rounds: int = 3


def measure_utilisation(sleeping: SleepingActors = SleepingActors()) -> dict[str, float]:
    """Return the fraction of time that actors slept, and the driver's cost per evaluation.

    `bare_ray` is that fraction with plain Ray calls, an upper limit for any driver on this machine.
    Rounds of both alternate.
    """
    tasks = [SleepTask(SLEEP)] * (sleeping.count * sleeping.each)
    ideal, busy, bare, costs = SLEEP * sleeping.each, [], [], []
    with local_ray(sleeping.count):
        create_actor = share_actors(sleeping.count)
        with RayWorkers(
            "evaluator", WorkerOptions(sleeping.count), create_actor=create_actor
        ) as workers:
            wait_for_all(workers)
            actors = [create_actor() for _ in range(sleeping.count)]
            for _ in range(sleeping.rounds):
                cpu, started = time.process_time(), time.perf_counter()
                workers.run(tasks)
                busy.append(ideal / (time.perf_counter() - started))
                costs.append((time.process_time() - cpu) / len(tasks))
                bare.append(ideal / call_bare(actors, len(tasks)))
    return {
        f"utilisation_{sleeping.count}": max(busy),
        "bare_ray": max(bare),
        "sleeping_driver_ms": 1e3 * min(costs),
    }


def call_bare(actors: Sequence[Any], count: int) -> float:
    """Return the seconds of `count` plain Ray calls, one per actor at a time."""
    message = pack_task(SleepTask(SLEEP))
    started = time.perf_counter()
    calls = {actor.run.remote(message): actor for actor in actors}
    left = count - len(calls)
    while calls:
        ready, rest = ray.wait(list(calls))
        if rest:
            ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        for reference in ready:
            ray.get(reference)
            actor = calls.pop(reference)
            if left > 0:
                calls[actor.run.remote(message)] = actor
                left -= 1
    return time.perf_counter() - started


def share_actors(count: int) -> Any:  # noqa: ANN401 - makes Ray's handles
    """Return a factory of actors that share `PROCESSES` processes: 64 would not fit in memory.

    The driver treats each of them as an actor with its own process.
    """
    options = {"num_cpus": 0, "max_concurrency": -(-count // PROCESSES)}
    made = [Actor.options(**options).remote() for _ in range(PROCESSES)]  # type: ignore[attr-defined] # ray adds it
    return cycle(made).__next__
