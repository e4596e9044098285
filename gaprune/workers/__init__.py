"""Where tasks run: in this process, or on Ray actors. One protocol, one contract."""

from gaprune.workers.cluster import OWN
from gaprune.workers.protocol import Lost, Staff, Warn, Workers
from gaprune.workers.ray_pool import RayWorkers
from gaprune.workers.serial import SerialWorkers
from gaprune.workers.tolerance import Tolerance

__all__ = [
    "Lost",
    "RayWorkers",
    "SerialWorkers",
    "Staff",
    "Tolerance",
    "Warn",
    "Workers",
    "open_workers",
]


def open_workers(bench: object, staff: Staff, warn: Warn = lambda _: None) -> Workers:
    """Return workers that hold `bench`: this process for one, Ray actors for more.

    One worker that is to have a GPU of its own, or to be on a cluster, is an actor too.
    """
    here = staff.count == 1 and not staff.gpus and staff.address == OWN
    return SerialWorkers(bench, staff.threads) if here else RayWorkers(bench, staff, warn)
