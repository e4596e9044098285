"""Where tasks run: in this process, or on Ray actors. One protocol, one contract."""

from typing import TYPE_CHECKING, Any

from gaprune.workers.device import choose_device, choose_driver_device, on_device
from gaprune.workers.protocol import FailedTask, Warn, WorkerOptions, Workers
from gaprune.workers.retry_policy import RetryPolicy
from gaprune.workers.serial import SerialWorkers

if TYPE_CHECKING:
    from gaprune.workers.ray_pool import RayWorkers

__all__ = [
    "FailedTask",
    "RayWorkers",
    "RetryPolicy",
    "SerialWorkers",
    "Warn",
    "WorkerOptions",
    "Workers",
    "choose_device",
    "choose_driver_device",
    "open_workers",
    "on_device",
]


def open_workers(
    evaluator: object, worker_options: WorkerOptions, warn: Warn = lambda _: None
) -> Workers:
    """Return workers that hold `evaluator`: this process for one, Ray actors for more.

    One worker that reserves a GPU, or is to be on a cluster, is an actor too.

    Raises:
        InputError: the device that is asked for is not there.
    """
    device = choose_device(worker_options)
    if worker_options.in_process:
        return SerialWorkers(evaluator, worker_options.threads, device)
    from gaprune.workers.ray_pool import RayWorkers  # noqa: PLC0415 - as below

    return RayWorkers(evaluator, worker_options, warn)


def __getattr__(name: str) -> Any:
    """Import Ray when it is first wanted: that takes half a second and 36 MB in every command."""
    if name == "RayWorkers":
        from gaprune.workers.ray_pool import RayWorkers  # noqa: PLC0415

        return RayWorkers
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
