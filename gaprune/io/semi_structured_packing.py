"""Weights that hold 2:4, packed as torch packs them for CUDA: half of the values, and which."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

VALUES, META = ".packed", ".meta"
HALVES = (torch.float16, torch.bfloat16)  # what torch packs


def packed(name: str, weight: Tensor) -> dict[str, Tensor]:
    """Return a matrix of 16-bit floats as the two tensors that stand for it in a file."""
    values, places = sparse_semi_structured_from_dense_cutlass(weight)
    return {name + VALUES: values.contiguous(), name + META: places.contiguous()}


def packed_names(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the weights that are packed in a state dict."""
    stems = (name.removesuffix(VALUES) for name in state if name.endswith(VALUES))
    return tuple(stem for stem in stems if _is_packed(stem, state))


def unpacked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict in which packed weights are whole again, each in its place.

    Raises:
        RuntimeError: the parts do not fit each other.
    """
    names = packed_names(state)
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        stem = name.removesuffix(VALUES).removesuffix(META)
        if stem not in names or name == stem:
            plain[name] = value
        elif name.endswith(VALUES):
            plain[stem] = sparse_semi_structured_to_dense_cutlass(value, state[stem + META])
    return plain


def _is_packed(stem: str, state: Mapping[str, Tensor]) -> bool:
    values, places = state[stem + VALUES], state.get(stem + META)
    return places is not None and values.dtype in HALVES and places.dtype == torch.int16
