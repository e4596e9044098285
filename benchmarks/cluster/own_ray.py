"""A Ray of our own on this machine, as large as a benchmark says it is."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from benchmarks.cluster.tasks import Pause
from gaprune.workers import RayWorkers

STORE = 512 * 1024**2  # bytes of the object store


@contextmanager
def own_ray(cpus: int) -> Iterator[None]:
    """Start Ray with so many CPUs, be they there or not, and stop it; one that runs is used."""
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
    """Let everybody come, so that starting is not measured."""
    while len(workers.idle) < workers.count:
        workers.run([Pause(0.02)] * workers.count)
