"""Whether a long search needs ever more memory, here or in the actors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.cluster.own_ray import own_ray, wait_for_all
from benchmarks.cluster.searches import make_search
from benchmarks.cluster.tasks import Who
from gaprune.evolution.engine import Evolution
from gaprune.records import Generation
from gaprune.workers import RayWorkers, WorkerOptions

LONG: dict[str, Any] = {
    "target": "mnist-mlp",
    "preset": "black-box",
    "population": 4,
    "offspring": 8,
    "generations": 200,
    "calibration_count": 16,
    "validation_count": 16,
}
SETTLED = 20  # generations until what is made once is there
MB = 2**20


def measure_memory(long: dict[str, Any] = LONG, settled: int = SETTLED) -> dict[str, float]:
    """Run a search of many generations and compare the memory then with that near its begin.

    Ray's object store, which is of a fixed size, does not count.
    """
    search = make_search(**long)
    with own_ray(2), RayWorkers(search.evaluator, WorkerOptions(2)) as workers:
        wait_for_all(workers)
        actors = actors_of(workers)
        seen: dict[int, tuple[float, float]] = {}

        def look(record: Generation) -> None:
            if record.generation in (settled, search.plan.limits.generations):
                seen[record.generation] = own_mb("self"), max(map(own_mb, actors))

        Evolution(search.plan, workers, look).run(search.seeds)
        assert not workers.lost, "a replaced actor has another memory"
    (driver, actor), (driver_end, actor_end) = seen.values()
    return {
        "memory_growth_mb": max(driver_end - driver, actor_end - actor),
        "memory_growth_driver_mb": driver_end - driver,
        "memory_growth_actors_mb": actor_end - actor,
        "memory_driver_mb": driver_end,
        "memory_actor_mb": actor_end,
    }


def actors_of(workers: RayWorkers) -> list[int]:
    """Return the numbers of the actors' processes."""
    found: set[int] = set()
    while len(found) < workers.count:
        found.update(workers.run([Who()] * workers.count))
    return sorted(found)


def own_mb(process: int | str) -> float:
    """Return the resident memory of a process that it shares with nobody through the store."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    kb = dict(line.split(":", 1) for line in lines)
    return sum(int(kb[name].split()[0]) for name in ("RssAnon", "RssFile")) / 1024
