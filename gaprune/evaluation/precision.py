"""Arithmetic of fewer bits where candidates are selected and steered; judging has all bits.

A network in float32 runs under `torch.autocast`: its matrix products and convolutions are computed
in a narrow type, what would suffer (norms, softmax, losses) is not, and gradients of float32 scores
are float32 (Micikevicius et al. 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from gaprune.errors import InputError, unknown_name

FULL, AUTO = "float32", "auto"
PRECISIONS: dict[str, torch.dtype | None] = {
    FULL: None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Name → what autocast computes in; None is no autocast: as the network is."""
SCALES = (2.0**16, 2.0**12, 2.0**8, 2.0**4, 1.0)
"""Factors on a loss in float16, tried in turn until no gradient overflows."""


def check_precision(asked: str, device: str) -> None:
    """Refuse what cannot be computed on a device (`cpu`, `cuda` or `cuda:N`).

    Raises:
        InputError: an unknown name; float16 on the CPU, where it is slow and has no purpose.
    """
    if asked not in (*PRECISIONS, AUTO):
        raise unknown_name("precision", asked, [*PRECISIONS, AUTO])
    if asked == "float16" and device == "cpu":
        raise InputError(
            "precision: float16 needs a GPU, and candidates are tried on the CPU; use "
            "--precision bfloat16, or --device cuda"
        )


def choose_precision(asked: str, device: str, dtype: torch.dtype) -> str:
    """Return a key of `PRECISIONS` for a network of this dtype.

    Raises:
        InputError: as `check_precision`; or the network computes in another type than float32.
    """
    check_precision(asked, device)
    if asked == AUTO:
        wide = device == "cpu" or dtype != torch.float32 or not _is_native()
        return FULL if wide else "bfloat16"
    if asked != FULL and dtype != torch.float32:
        raise InputError(
            f"precision: {asked} takes bits from float32, and this network computes in "
            f"{str(dtype).removeprefix('torch.')}; leave --precision out"
        )
    return asked


def _is_native() -> bool:
    """Tell whether the GPU here computes in bfloat16; one that only the workers have, is new."""
    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)


def reduced(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which forwards are computed in a precision; float16 on GPUs alone."""
    dtype = PRECISIONS[precision]
    if dtype is None or (dtype == torch.float16 and device.type == "cpu"):
        return nullcontext()
    return torch.autocast(device.type, dtype)


def gradients(loss: Tensor, leaves: Sequence[Tensor], precision: str) -> tuple[Tensor, ...]:
    """Return ∂loss/∂leaf of every leaf; 0 of one that the loss does not depend on.

    In float16 small gradients would be lost on their way back, so the loss is multiplied by a large
    number and the gradients are divided by it (loss scaling, Micikevicius et al. 2018, section
    3.2). The largest of `SCALES` under which all are finite is found anew at every call: no state,
    so that equal calls give equal bits.
    """
    if precision != "float16":
        return torch.autograd.grad(loss, leaves, materialize_grads=True)
    for scale in SCALES:
        scaled = torch.autograd.grad(
            loss * scale, leaves, materialize_grads=True, retain_graph=scale != SCALES[-1]
        )
        if scale == SCALES[-1] or all(bool(one.isfinite().all()) for one in scaled):
            break
    return tuple(one / scale for one in scaled)
