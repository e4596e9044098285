"""Where tasks run: in this process or on Ray actors. Both pass the same contract tests."""

from gaprune.workers.base import FailedTask, RetryPolicy, Warn, WorkerOptions, Workers
from gaprune.workers.device import choose_device, on_device
from gaprune.workers.serial import SerialWorkers

__all__ = [
    "FailedTask",
    "RetryPolicy",
    "SerialWorkers",
    "Warn",
    "WorkerOptions",
    "Workers",
    "choose_device",
    "on_device",
    "open_workers",
]


def open_workers(
    evaluator: object, worker_options: WorkerOptions, warn: Warn = lambda _: None
) -> Workers:
    """Return workers that evaluate candidates, on the device that `choose_device` returned."""
    if worker_options.in_process:
        return SerialWorkers(evaluator, worker_options.threads, worker_options.device)
    # Ray is imported on first use: it takes half a second and 36 MB, also in commands without it.
    from gaprune.workers.ray_pool import RayWorkers  # noqa: PLC0415

    return RayWorkers(evaluator, worker_options, warn)
