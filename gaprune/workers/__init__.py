"""Where tasks run: in this process or on Ray actors. Both pass the same contract tests."""

from typing import TYPE_CHECKING, Any

from gaprune.workers.base import FailedTask, RetryPolicy, Warn, WorkerOptions, Workers
from gaprune.workers.device import choose_device, choose_driver_device, on_device
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
    "on_device",
    "open_workers",
]


def open_workers(
    evaluator: object, worker_options: WorkerOptions, warn: Warn = lambda _: None
) -> Workers:
    """Return workers that evaluate candidates, on the device that `choose_device` returned."""
    if worker_options.in_process:
        return SerialWorkers(evaluator, worker_options.threads, worker_options.device)
    from gaprune.workers.ray_pool import RayWorkers  # noqa: PLC0415 - see below

    return RayWorkers(evaluator, worker_options, warn)


def __getattr__(name: str) -> Any:
    """Import Ray on first use: it takes half a second and 36 MB, also in commands without it."""
    if name == "RayWorkers":
        from gaprune.workers.ray_pool import RayWorkers  # noqa: PLC0415

        return RayWorkers
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
