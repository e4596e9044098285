"""Whether weights are still what they were: once bit for bit, then cheaply after every task."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from gaprune.evaluation.evaluator import Evaluator

WORD = 8  # bytes that are added up at a time


def frozen(evaluator: Any) -> list[Tensor]:
    """Return what no task may change: the parameters of the network and its prunable weights.

    Buffers are left out: a network of the user's own may count in them. Whatever is no `Evaluator` has
    nothing.
    """
    if not isinstance(evaluator, Evaluator):
        return []
    return [one.detach() for one in (*evaluator.model.parameters(), *evaluator.weights.values())]


def digest(tensors: Iterable[Tensor]) -> str:
    """Return the BLAKE2b of the bytes of all tensors, in order: equal ones are bit-equal."""
    total = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        flat = tensor.contiguous().reshape(-1).view(torch.uint8).cpu()
        total.update(flat.numpy().data)
    return total.hexdigest()


def tally(tensors: Iterable[Tensor]) -> tuple[int, ...]:
    """Return the sum of every tensor's 64-bit words, modulo 2^64.

    A thousandth of the time of `digest`. It notices every change of a single word, and others but
    for one in 2^64, not an exchange of words.
    """
    return tuple(int(_words(tensor).sum()) for tensor in tensors)


def _words(tensor: Tensor) -> Tensor:
    flat = tensor.contiguous().reshape(-1)
    if flat.data_ptr() % WORD:
        flat = flat.clone()
    flat = flat.view(torch.uint8)
    whole = len(flat) // WORD * WORD
    words = flat[:whole].view(torch.int64)
    if whole == len(flat):
        return words
    return torch.cat([words, flat[whole:].long()])
