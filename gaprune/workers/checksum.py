"""Checksums of the frozen weights: a digest after sending, a cheap sum after every task."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from gaprune.evaluation.evaluator import Evaluator

WORD = 8  # bytes that are summed at a time


def frozen_tensors(evaluator: Any) -> list[Tensor]:
    """Return what no task may change: all parameters and the prunable weights.

    Buffers are left out: a user's network may count in them. Any other object has no tensors.
    """
    if not isinstance(evaluator, Evaluator):
        return []
    tensors = (*evaluator.network.model.parameters(), *evaluator.network.weights.values())
    return [tensor.detach() for tensor in tensors]


def weights_digest(tensors: Iterable[Tensor]) -> str:
    """Return the BLAKE2b digest of the bytes of all tensors, in order."""
    total = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        total.update(_bytes(tensor).cpu().numpy().data)
    return total.hexdigest()


def weights_sum(tensors: Iterable[Tensor]) -> tuple[int, ...]:
    """Return, for every tensor, the sum of its 64-bit words modulo 2^64.

    It takes a thousandth of the time of the digest. It detects every change of a single word and
    all but one in 2^64 of other changes, but not an exchange of words.
    """
    return tuple(int(_words(tensor).sum()) for tensor in tensors)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _words(tensor: Tensor) -> Tensor:
    data = _bytes(tensor)
    if data.data_ptr() % WORD:
        data = data.clone()  # a view as int64 needs an aligned beginning
    whole = len(data) // WORD * WORD
    words = data[:whole].view(torch.int64)
    return words if whole == len(data) else torch.cat([words, data[whole:].long()])
