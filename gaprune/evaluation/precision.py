"""Reduced precision for scoring and gradient steps; validation always has full precision.

A float32 network runs under `torch.autocast`: matrix products and convolutions use a 16-bit type,
sensitive operations (norms, softmax, losses) stay in float32, and so do the gradients of float32
scores (mixed precision, Micikevicius et al. 2018).
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
"""Name → the type for autocast; None turns autocast off."""
SCALES = (2.0**16, 2.0**12, 2.0**8, 2.0**4, 1.0)
"""Loss scales for float16, tried in turn until no gradient overflows."""


def check_precision(asked: str, device: str) -> None:
    """Raise `InputError` for an unknown name, or float16 on the CPU (slower than float32)."""
    if asked not in (*PRECISIONS, AUTO):
        raise unknown_name("precision", asked, [*PRECISIONS, AUTO])
    if asked == "float16" and device == "cpu":
        raise InputError(
            "precision: float16 needs a GPU, and candidates run on the CPU; use "
            "--precision=bfloat16, or --device=cuda"
        )


def choose_precision(asked: str, device: str, dtype: torch.dtype) -> str:
    """Return a key of `PRECISIONS` for a network of this dtype.

    Raises:
        InputError: see `check_precision`; or the network is not in float32.
    """
    check_precision(asked, device)
    if asked == AUTO:
        # Without a GPU here, the GPUs of the workers are assumed to support bfloat16.
        native = not torch.cuda.is_available() or torch.cuda.is_bf16_supported(
            including_emulation=False
        )
        return "bfloat16" if native and device != "cpu" and dtype == torch.float32 else FULL
    # Autocast only converts float32; a float64 network would keep its type.
    if asked != FULL and dtype != torch.float32:
        raise InputError(
            f"precision: {asked} replaces float32, and this network computes in "
            f"{str(dtype).removeprefix('torch.')}; leave --precision out"
        )
    return asked


def reduced(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return a context for forward passes in a precision; float16 only has an effect on GPUs."""
    # Autocast to float16 does not exist on the CPU; there the network runs unchanged.
    dtype = PRECISIONS[precision]
    if dtype is None or (dtype == torch.float16 and device.type == "cpu"):
        return nullcontext()
    return torch.autocast(device.type, dtype)


def gradients(loss: Tensor, leaves: Sequence[Tensor], precision: str) -> tuple[Tensor, ...]:
    """Return ∂loss/∂leaf of every leaf; 0 where the loss does not depend on it.

    Small gradients underflow in float16. Loss scaling (Micikevicius et al. 2018, section 3.2)
    multiplies the loss by a large factor and divides the gradients by it. Every call searches for
    the largest of `SCALES` with finite gradients: without state, equal calls give equal bits.
    """
    if precision != "float16":
        # bfloat16 has the exponent range of float32, so nothing underflows and no scale is needed.
        return torch.autograd.grad(loss, leaves, materialize_grads=True)
    for scale in SCALES:
        scaled = torch.autograd.grad(
            loss * scale, leaves, materialize_grads=True, retain_graph=scale != SCALES[-1]
        )
        if scale == SCALES[-1] or all(bool(gradient.isfinite().all()) for gradient in scaled):
            break
    return tuple(gradient / scale for gradient in scaled)
