"""Where workers try candidates: on the CPU, or on a GPU that gives equal bits for equal tasks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gaprune.bench import Bench
from gaprune.errors import InputError
from gaprune.workers.protocol import Staff

AUTO, CPU, CUDA = "auto", "cpu", "cuda"


def choose_device(staff: Staff) -> str:
    """Return where workers try candidates: `cpu`, `cuda` or `cuda:N`.

    Ray gives an actor the GPUs that it reserves, and these are all that it sees: actors with some
    are on `cuda`, the others on `cpu`. In this process `auto` is a GPU where torch sees one.

    Raises:
        InputError: what is asked is not there, or contradicts what workers reserve.
    """
    asked = staff.device
    if staff.gpus:
        return _of_actors_with_gpus(asked, staff.gpus)
    if not staff.here:
        if asked not in (AUTO, CPU):
            raise InputError(
                f"device: {asked!r} asked, but workers that are Ray actors have the GPUs that they "
                "reserve, and these reserve none; add --gpus-per-worker 1, or 0.25 for four on one "
                "GPU, or use one worker"
            )
        return CPU
    if asked == AUTO:
        return CUDA if torch.cuda.is_available() else CPU
    if asked != CPU:
        _check_there(asked)
    return asked


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


def settle(bench: Any, device: str) -> Any:
    """Return the bench where candidates are tried, and how; what is no `Bench` stays as it is.

    Raises:
        InputError: the network does not run there.
    """
    if not isinstance(bench, Bench):
        return bench
    moved = bench.to(device)
    if not moved.is_plain:  # the target was tried as it is
        moved.try_once()
    return moved


@contextmanager
def steady(device: str) -> Iterator[None]:
    """Let a GPU give equal bits for equal tasks inside the block, and float32 mean float32.

    Deterministic kernels are taken where torch has them (it warns where it has not), and none
    rounds float32 to TF32. On the CPU nothing changes.
    """
    if device == CPU:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as torch's notes ask for
    backends: Any = torch.backends  # torch annotates none of these switches
    memory: Any = torch.utils.deterministic
    kernels = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)
    bits = [one.fp32_precision for one in kernels]
    strict = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    fills = memory.fill_uninitialized_memory
    try:
        for one in kernels:
            one.fp32_precision = "ieee"
        torch.use_deterministic_algorithms(True, warn_only=not strict or warns)
        memory.fill_uninitialized_memory = False  # costs time, changes nothing
        yield
    finally:
        for one, before in zip(kernels, bits, strict=True):
            one.fp32_precision = before
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        memory.fill_uninitialized_memory = fills
