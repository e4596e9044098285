"""Where workers try candidates: on the CPU, or on a GPU that gives equal bits for equal tasks."""

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
from gaprune.workers.protocol import WorkerOptions

__all__ = [
    "CPU",
    "CUDA",
    "behind",
    "choose_device",
    "choose_driver_device",
    "move_evaluator",
    "deterministic",
    "on_device",
]

AUTO, CPU, CUDA = "auto", "cpu", "cuda"


def choose_device(worker_options: WorkerOptions, target: torch.device | None = None) -> str:
    """Return where workers try candidates: `cpu`, `cuda` or `cuda:N`.

    Ray gives an actor the GPUs that it reserves, and these are all that it sees: actors with some
    are on `cuda`, the others on `cpu`. In this process `auto` is a GPU where torch sees one.

    Args:
        worker_options: who works, and what was asked.
        target: where the dense network is, if that is known: `auto` is its GPU, if it is on one.

    Raises:
        InputError: what is asked is not there, or contradicts what workers reserve.
    """
    asked = worker_options.device
    if worker_options.gpus:
        return _of_actors_with_gpus(asked, worker_options.gpus)
    if not worker_options.in_process:
        if asked not in (AUTO, CPU):
            raise InputError(
                f"device: {asked!r} asked, but workers that are Ray actors have the GPUs that they "
                "reserve, and these reserve none; add --gpus-per-worker 1, or 0.25 for four on one "
                "GPU, or use one worker"
            )
        return CPU
    if asked == AUTO and target is not None and target.type == CUDA and target.index:
        return str(target)  # not the first one, which `cuda` stands for
    if asked == AUTO:
        return CUDA if torch.cuda.is_available() else CPU
    if asked != CPU:
        _check_there(asked)
    return asked


def choose_driver_device(worker_options: WorkerOptions) -> str:
    """Return where the dense network lives: with the search, where that is in this process.

    calibration inputs are then inverted and criteria computed on its GPU as well. Ray actors are sent the
    network from the CPU, since what Ray gives them may lie on another machine.

    Raises:
        InputError: as `choose_device`.
    """
    device = choose_device(worker_options)
    return device if worker_options.in_process else CPU


def _of_actors_with_gpus(asked: str, gpus: float) -> str:
    if asked == CPU:
        raise InputError(
            f"device: 'cpu' asked, but --gpus-per-worker {gpus:g} reserves GPUs; leave that out, "
            "or use --device cuda"
        )
    if asked not in (AUTO, CUDA):
        raise InputError(
            f"device: {asked!r} asked, but Ray chooses the GPU of every worker that reserves one; "
            "use --device cuda (CUDA_VISIBLE_DEVICES says which Ray may choose from)"
        )
    return CUDA


def _check_there(asked: str) -> None:
    if not torch.cuda.is_available():
        raise InputError(
            f"device: {asked!r} asked, but torch {torch.__version__} sees no CUDA GPU; use "
            "--device cpu, or install a torch that sees one (gaprune doctor says what it sees)"
        )
    count, number = torch.cuda.device_count(), torch.device(asked).index or 0
    if number >= count:
        raise InputError(f"device: {asked!r} asked, but there are {count} GPU(s), counted from 0")


def move_evaluator(evaluator: Any, device: str) -> Any:
    """Return the evaluator where candidates are tried, and how; what is no `Evaluator` stays as it is.

    Raises:
        InputError: the network does not run there.
    """
    if not isinstance(evaluator, Evaluator) or (device == CPU and evaluator.is_cpu_float32):
        return evaluator
    with profiled(START):
        moved = evaluator.to(device)
        moved.check_forward()  # elsewhere, or otherwise, than the target was
    return moved


def behind(device: str) -> Callable[[], object] | None:
    """Return what waits for a device that is behind the program; None on the CPU."""
    return None if device == CPU else partial(torch.cuda.synchronize, device)


@contextmanager
def on_device(device: str) -> Iterator[None]:
    """Work on a device: equal bits for equal work (`deterministic`), and a full memory is told of.

    Raises:
        GapruneError: the memory of the GPU is full.
    """
    if (profiler := active_profiler()) is not None:
        profiler.synchronize = behind(device)
    with deterministic(device):
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise GapruneError(
                f"device: the memory of {device} is full ({error}); use a smaller "
                "--batch, --precision bfloat16, or --device cpu"
            ) from error
