"""A GPU that gives equal bits for equal work, wherever a run computes on one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

CPU = "cpu"


@contextmanager
def steady(device: str | torch.device) -> Iterator[None]:
    """Let a GPU give equal bits for equal tasks inside the block, and float32 mean float32.

    Deterministic kernels are taken where torch has them (it warns where it has not), and none
    rounds float32 to TF32; attention is computed plainly, since its fused kernels add in any order.
    On the CPU nothing changes.
    """
    if torch.device(device).type == CPU:
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
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for one, before in zip(kernels, bits, strict=True):
            one.fp32_precision = before
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        memory.fill_uninitialized_memory = fills
