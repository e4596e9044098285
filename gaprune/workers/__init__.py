"""Where tasks run: in this process, or on Ray actors. One protocol, one contract."""

from gaprune.workers.ray_pool import RayWorkers
from gaprune.workers.serial import SerialWorkers, Workers

__all__ = ["RayWorkers", "SerialWorkers", "Workers", "open_workers"]


def open_workers(bench: object, count: int, threads: int) -> Workers:
    """Return workers that hold `bench`: this process for one, Ray actors for more."""
    return SerialWorkers(bench, threads) if count == 1 else RayWorkers(bench, count, threads)
