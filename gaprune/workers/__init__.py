"""Where tasks run: in this process, or on Ray actors. One protocol, one contract."""

from gaprune.workers.device import choose_device, choose_home, working_on
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
    "choose_device",
    "choose_home",
    "open_workers",
    "working_on",
]


def open_workers(bench: object, staff: Staff, warn: Warn = lambda _: None) -> Workers:
    """Return workers that hold `bench`: this process for one, Ray actors for more.

    One worker that reserves a GPU, or is to be on a cluster, is an actor too.

    Raises:
        InputError: the device that is asked for is not there.
    """
    device = choose_device(staff)
    if staff.here:
        return SerialWorkers(bench, staff.threads, device)
    return RayWorkers(bench, staff, warn)
