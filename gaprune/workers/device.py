"""Where workers evaluate candidates: the CPU, or a GPU with deterministic kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from gaprune.errors import GapruneError, InputError
from gaprune.evaluation.evaluator import Evaluator
from gaprune.models.forward import deterministic
from gaprune.profiling import START, active_profiler, profiled
from gaprune.workers.base import WorkerOptions

AUTO, CPU, CUDA = "auto", "cpu", "cuda"


def choose_device(worker_options: WorkerOptions, target: torch.device | None = None) -> str:
    """Return where workers evaluate candidates: `cpu`, `cuda` or `cuda:N`.

    A Ray actor sees exactly the GPUs that it reserves: actors that reserve some use `cuda`, the
    others the CPU. In this process `auto` is a GPU where torch sees one, that of `target` if known.

    Raises:
        InputError: the device is not available, or contradicts the reservations.
    """
    requested = worker_options.device
    if worker_options.gpus:
        if requested in (AUTO, CUDA):
            return CUDA
        raise InputError(
            f"device: {requested!r} asked, but --gpus-per-worker={worker_options.gpus:g} reserves "
            "GPUs, and Ray chooses which (CUDA_VISIBLE_DEVICES limits its choice); use "
            "--device=cuda, or leave --gpus-per-worker out"
        )
    if not worker_options.in_process:
        if requested in (AUTO, CPU):
            return CPU
        raise InputError(
            f"device: {requested!r} asked, but Ray workers see only the GPUs that they reserve, "
            "and these reserve none; add --gpus-per-worker=1, or 0.25 for four workers on one "
            "GPU, or use one worker"
        )
    if requested == AUTO:
        if target is not None and target.type == CUDA and target.index:
            return str(target)  # plain `cuda` would be the first GPU
        return CUDA if torch.cuda.is_available() else CPU
    if requested == CPU:
        return CPU
    if not torch.cuda.is_available():
        raise InputError(
            f"device: {requested!r} asked, but torch {torch.__version__} sees no CUDA GPU; use "
            "--device=cpu, or install a torch that sees one (gaprune doctor shows what it sees)"
        )
    count, index = torch.cuda.device_count(), torch.device(requested).index or 0
    if index >= count:
        raise InputError(
            f"device: {requested!r} asked, but there are {count} GPU(s), counted from 0"
        )
    return requested


def move_evaluator(evaluator: Any, device: str) -> Any:
    """Return the evaluator on a device; InputError if the network does not run there."""
    if not isinstance(evaluator, Evaluator) or (device == CPU and evaluator.is_cpu_float32):
        return evaluator
    with profiled(START):
        moved = evaluator.to(device)
        moved.check_forward()  # the target was checked on another device, or in another precision
    return moved


def synchronizer(device: str) -> Callable[[], object] | None:
    """Return a function that waits until a GPU has finished its work; None on the CPU."""
    return None if device == CPU else partial(torch.cuda.synchronize, device)


@contextmanager
def on_device(device: str) -> Iterator[None]:
    """Compute deterministically on a device; a full GPU memory raises GapruneError."""
    if (profiler := active_profiler()) is not None:
        profiler.synchronize = synchronizer(device)
    with deterministic(device):
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise GapruneError(
                f"device: the memory of {device} is full ({error}); use a smaller "
                "--batch, --precision=bfloat16, or --device=cpu"
            ) from error
