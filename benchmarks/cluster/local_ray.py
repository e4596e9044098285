"""A local Ray for benchmarks, and small tasks for its actors."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from gaprune.workers.ray_pool import RayWorkers

STORE = 512 * 1024**2  # bytes of the object store


@dataclass(frozen=True)
class SleepTask:
    """A task that sleeps and returns the process id of its worker."""

    seconds: float = 0.05

    def run(self, _evaluator: object) -> int:
        """Sleep."""
        time.sleep(self.seconds)
        return os.getpid()


@contextmanager
def local_ray(cpus: int) -> Iterator[None]:
    """Start Ray with a declared number of CPUs, and stop it; a running Ray is used as it is."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    path = os.pathsep.join(filter(None, sys.path))
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=STORE,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    try:
        yield
    finally:
        ray.shutdown()


def wait_for_all(workers: RayWorkers) -> None:
    """Wait until every actor has started, so that the start is not measured."""
    while len(workers.idle) < workers.count:
        workers.run([SleepTask(0.02)] * workers.count)
