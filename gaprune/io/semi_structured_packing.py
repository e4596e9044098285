"""2:4 sparse weights as torch packs them for CUDA: half of the values, and their positions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

VALUES, META = ".packed", ".meta"
HALVES = (torch.float16, torch.bfloat16)  # the dtypes that torch packs


def packed(name: str, weight: Tensor) -> dict[str, Tensor]:
    """Return the two tensors that replace a matrix of 16-bit floats in a file."""
    values, positions = sparse_semi_structured_from_dense_cutlass(weight)
    return {name + VALUES: values.contiguous(), name + META: positions.contiguous()}


def unpacked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict in which packed weights are dense again, in their order.

    Raises:
        RuntimeError: values and positions do not fit.
    """
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        stem = name.removesuffix(VALUES).removesuffix(META)
        dtypes = [state[stem + part].dtype for part in (VALUES, META) if stem + part in state]
        # a weight may happen to be called like a packed one: both parts must be there
        if name == stem or dtypes not in ([half, torch.int16] for half in HALVES):
            plain[name] = value
        elif name.endswith(VALUES):  # the positions are read together with the values
            plain[stem] = sparse_semi_structured_to_dense_cutlass(value, state[stem + META])
    return plain
