"""Memory growth of the driver and of the actors during a long search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.cluster.local_ray import SleepTask, local_ray, wait_for_all
from benchmarks.cluster.searches import make_search
from gaprune.evolution.engine import Evolution
from gaprune.records import Generation
from gaprune.workers import WorkerOptions
from gaprune.workers.ray_pool import RayWorkers

LONG: dict[str, Any] = {
    "target": "mnist-mlp",
    "preset": "black-box",
    "population": 4,
    "offspring": 8,
    "generations": 200,
    "calibration_count": 16,
    "validation_count": 16,
}
SETTLED = 20  # generations until caches and buffers are filled
MB = 2**20


def measure_memory(long: dict[str, Any] = LONG, settled: int = SETTLED) -> dict[str, float]:
    """Compare the memory after `settled` generations with the memory at the end of a search.

    Ray's object store has a fixed size and does not count.
    """
    search = make_search(**long)
    with local_ray(2), RayWorkers(search.evaluator, WorkerOptions(2)) as workers:
        wait_for_all(workers)
        actors = actors_of(workers)
        seen: dict[int, tuple[float, float]] = {}

        def look(record: Generation) -> None:
            if record.generation in (settled, search.plan.limits.generations):
                seen[record.generation] = private_mb("self"), max(map(private_mb, actors))

        Evolution(search.plan, workers, look).run(search.seeds)
        assert not workers.lost, "a replaced actor starts with fresh memory"
    (driver, actor), (driver_end, actor_end) = seen.values()
    return {
        "memory_growth_mb": max(driver_end - driver, actor_end - actor),
        "memory_growth_driver_mb": driver_end - driver,
        "memory_growth_actors_mb": actor_end - actor,
        "memory_driver_mb": driver_end,
        "memory_actor_mb": actor_end,
    }


def actors_of(workers: RayWorkers) -> list[int]:
    """Return the process ids of the actors."""
    process_ids: set[int] = set()
    while len(process_ids) < workers.count:
        process_ids.update(workers.run([SleepTask()] * workers.count))
    return sorted(process_ids)


def private_mb(process: int | str) -> float:
    """Return the resident memory of a process without shared memory, MB."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    kb = dict(line.split(":", 1) for line in lines)
    return sum(int(kb[name].split()[0]) for name in ("RssAnon", "RssFile")) / 1024
