"""Runs in a process of its own: two nodes of Ray on this machine, one of which is taken away.

Joins the cluster by its address, as `--ray-address` does, and prints what happened as JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import ray
from fault_tasks import Grow
from ray.cluster_utils import Cluster

from gaprune.workers import WorkerOptions
from gaprune.workers.ray_pool import RayWorkers

SIZE = 200_000  # more than Ray sends along with an answer


@dataclass(frozen=True)
class Later:
    """Run a task after a while."""

    task: Any
    delay: float

    def run(self, evaluator: object) -> Any:  # noqa: ANN401 - whatever the task returns
        """Wait, then run it."""
        time.sleep(self.delay)
        return self.task.run(evaluator)


def main() -> None:
    """Lose a node with genes on it and tasks in flight."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    second = cluster.add_node(num_cpus=2)
    warnings: list[str] = []
    tasks = [Grow(seed, SIZE) for seed in range(12)]
    with RayWorkers(
        "evaluator", WorkerOptions(3, address=cluster.address), warnings.append
    ) as workers:
        while len(workers.idle) < 3:
            workers.run([Later(Grow(0), 0.1)])
        early = workers.run(tasks[:6])
        threading.Timer(1.5, cluster.remove_node, (second,), {"allow_graceful": False}).start()
        started = time.monotonic()
        late = workers.run([Later(task, 1.0) for task in tasks[6:]])
        seconds = time.monotonic() - started
        started = time.monotonic()
        genomes = workers.fetch([*early, *late])
        fetched = time.monotonic() - started
        lost = workers.lost
    expected = [task.run(None).genes.numbers for task in tasks]
    facts = {
        "equal": all(bool((a.numbers == b).all()) for a, b in zip(genomes, expected, strict=True)),
        "lost": lost,
        "warnings": warnings,
        "run_seconds": seconds,
        "fetch_seconds": fetched,
        "still_connected": ray.is_initialized(),
    }
    print(json.dumps(facts))  # noqa: T201 - it is read by a test
    sys.stdout.flush()
    cluster.shutdown()


if __name__ == "__main__":
    main()
