"""How busy 64 actors are that sleep for every evaluation: all that is measured is the driver."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import ray

from benchmarks.cluster.own_ray import own_ray, wait_for_all
from benchmarks.cluster.tasks import Pause
from gaprune.workers import RayWorkers, WorkerOptions
from gaprune.workers.actor import Actor
from gaprune.workers.transport import pack_task

SLEEP = 0.05  # seconds
PROCESSES = 2


@dataclass(frozen=True)
class Crowd:
    """How many there are and what they do.

    Attributes:
        count: actors, as the driver sees them.
        each: evaluations of each in a round.
        rounds: the best of so many counts: others only take away from it.
    """

    count: int = 64
    each: int = 120
    rounds: int = 3


def measure_utilisation(crowd: Crowd = Crowd()) -> dict[str, float]:
    """Return the part of the time that actors slept, and what an evaluation cost the driver.

    `bare_ray` is that part where nothing but Ray's calls are made: on this machine, as busy as it
    is, no driver can get more out of them. Rounds take turns.
    """
    tasks = [Pause(SLEEP)] * (crowd.count * crowd.each)
    ideal, busy, bare, costs = SLEEP * crowd.each, [], [], []
    with own_ray(crowd.count):
        create_actor = share_actors(crowd.count)
        with RayWorkers(
            "evaluator", WorkerOptions(crowd.count), create_actor=create_actor
        ) as workers:
            wait_for_all(workers)
            actors = [create_actor() for _ in range(crowd.count)]
            for _ in range(crowd.rounds):
                cpu, started = time.process_time(), time.perf_counter()
                workers.run(tasks)
                busy.append(ideal / (time.perf_counter() - started))
                costs.append((time.process_time() - cpu) / len(tasks))
                bare.append(ideal / call_bare(actors, len(tasks)))
    return {
        f"utilisation_{crowd.count}": max(busy),
        "bare_ray": max(bare),
        "sleeping_driver_ms": 1e3 * min(costs),
    }


def call_bare(actors: Sequence[Any], count: int) -> float:
    """Keep every actor busy with one call at a time and return the seconds of `count` calls."""
    message = pack_task(Pause(SLEEP))
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
    """Return what hires: each process is many actors, as 64 would not fit on a small machine.

    The driver does for each what it does for one of its own process.
    """
    options = {"num_cpus": 0, "max_concurrency": -(-count // PROCESSES)}
    made = [Actor.options(**options).remote() for _ in range(PROCESSES)]  # type: ignore[attr-defined] # ray adds it
    return cycle(made).__next__
