"""Subnormal numbers: too small for the usual format, and up to 60 times slower to compute with.

Weight decay leaves them in trained networks: float32 values below 1.2e-38. Intel processors handle
them in microcode, so a dense network that holds them looks slow beside its pruned copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}
_PROBE = 1e-40  # subnormal in float32


@contextmanager
def subnormals_as_zero() -> Iterator[None]:
    """Compute with subnormal numbers as zeros inside the block, where the processor can.

    Copies keep their bits. The setting belongs to the thread.
    """
    before = bool(torch.tensor([_PROBE], device="cpu").mul(1.0).eq(0.0))
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def is_subnormal(values: Tensor) -> Tensor:
    """Return where values are subnormal; nowhere unless they are float32 or float64.

    Reads bits: where subnormal numbers count as zeros, a comparison does not see them.
    """
    integer = _BITS.get(values.dtype)
    if integer is None or values.layout != torch.strided:
        return torch.zeros(values.shape, dtype=torch.bool)
    info = torch.finfo(values.dtype)
    smallest = torch.tensor(info.tiny, dtype=values.dtype, device="cpu").view(integer)
    magnitude = values.detach().cpu().contiguous().view(integer) & torch.iinfo(integer).max
    return (magnitude > 0) & (magnitude < smallest)


def count_subnormal(tensors: Iterable[Tensor]) -> int:
    """Return how many of these values are subnormal."""
    return sum(int(is_subnormal(tensor).sum()) for tensor in tensors)


def with_subnormals_zeroed(values: Tensor) -> Tensor:
    """Return the tensor with subnormal values replaced by 0; itself where it has none."""
    found = is_subnormal(values)
    return values.masked_fill(found.to(values.device), 0.0) if bool(found.any()) else values
