"""One tensor of a sparse file: from its streams of bytes to places and values, bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gaprune.io.sparse.compression import RAW, laid_out, unsqueeze
from gaprune.io.sparse.index_codecs import Bytes, decode

OWN, HALF, BOOK = "own", "float16", "codebook"
DIGITS = 16  # of the SHA-256 of a tensor's streams: chance passes one flaw in 2^64
DTYPES = {
    str(one).removeprefix("torch."): one
    for one in (
        *(torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.bool, torch.uint8),
        *(torch.int8, torch.int16, torch.int32, torch.int64, torch.complex64, torch.complex128),
    )
}

DEFAULTS: dict[str, Any] = {"masked": False, "places": "all", "values": OWN, "order": RAW}
"""What holds where the facts do not say otherwise; and all values are kept."""


class Entry(NamedTuple):
    """A stored tensor.

    Attributes:
        facts: plain data: how to read the bytes.
        data: the streams, one after the other.
    """

    facts: dict[str, Any]
    data: Bytes


class Kept(NamedTuple):
    """What a tensor keeps.

    Attributes:
        dtype, shape: of the tensor.
        values: the values that are kept, in the tensor's dtype.
        places: int64, where they lie in the flat tensor, ascending; None: everywhere.
        masked: whether the places are a mask.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    values: Tensor
    places: Tensor | None
    masked: bool

    def tensor(self) -> Tensor:
        """Return the tensor; what is not kept is +0."""
        if self.places is None:
            return self.values.view(self.shape)
        flat = torch.zeros(prod(self.shape), dtype=self.dtype)
        flat[self.places] = self.values
        return flat.view(self.shape)

    def put_into(self, tensor: Tensor) -> None:
        """Write it into a tensor of the same shape; no second one is made."""
        if self.places is None or not tensor.is_contiguous():
            tensor.copy_(self.tensor())
            return
        flat = tensor.zero_().view(-1)
        flat[self.places.to(flat.device)] = self.values.to(flat.device, flat.dtype)

    def mask(self) -> Tensor:
        """Return the mask, bool of the tensor's shape."""
        flat = torch.full((prod(self.shape),), self.places is None)
        if self.places is not None:
            flat[self.places] = True
        return flat.view(self.shape)


def read_entry(entry: Entry) -> Kept:
    """Return what was stored.

    Raises:
        ValueError: damaged; the message says how.
        GapruneError: an optional package is not installed.
    """
    facts = DEFAULTS | entry.facts
    if digest(entry.data) != facts["sha256"]:
        raise ValueError("its bytes are not those that were written (SHA-256)")
    streams = _streams(entry.data, facts["streams"])
    dtype, shape = DTYPES[facts["dtype"]], tuple(facts["shape"])
    kept = facts.get("kept", prod(shape))
    values = _VALUES[facts["values"]](streams, dtype, facts["order"])
    if len(values) != kept:
        raise ValueError(f"{len(values)} values are kept where {kept} were stored")
    if facts["places"] == "all":
        if kept != prod(shape):
            raise ValueError(f"{kept} values do not fill the shape {shape}")
        return Kept(dtype, shape, values, None, facts["masked"])
    places = torch.from_numpy(decode(facts["places"], streams, shape, kept))
    return Kept(dtype, shape, values, places, facts["masked"])


def digest(data: Bytes) -> str:
    """Return the first `DIGITS` hexadecimal digits of the SHA-256."""
    return hashlib.sha256(data.data).hexdigest()[:DIGITS]


def _streams(data: Bytes, sizes: Mapping[str, list[int]]) -> dict[str, Bytes]:
    """Cut the streams out of the bytes of a tensor."""
    found, start = {}, 0
    for name, (stored, *before) in sizes.items():
        part = data[start : start + stored]
        found[name] = unsqueeze(part, before[0]) if before else part
        start += stored
    if start != len(data):
        raise ValueError(f"its streams take {start} bytes where {len(data)} were stored")
    return found


def _as_tensor(data: Bytes, dtype: torch.dtype) -> Tensor:
    if not len(data):
        return torch.zeros(0, dtype=dtype)
    return torch.from_numpy(data.copy()).view(dtype)


def _from_own(streams: Mapping[str, Bytes], dtype: torch.dtype, order: str) -> Tensor:
    return _as_tensor(laid_out(streams["values"], order, dtype.itemsize), dtype)


def _from_half(streams: Mapping[str, Bytes], dtype: torch.dtype, order: str) -> Tensor:
    return _from_own(streams, torch.float16, order).to(dtype)


def _from_book(streams: Mapping[str, Bytes], dtype: torch.dtype, order: str) -> Tensor:
    book = _as_tensor(streams["book"], dtype)
    if not len(streams["codes"]):
        return book
    width = np.dtype("u1" if len(book) <= 1 << 8 else "<u2")
    codes = np.frombuffer(streams["codes"], width).astype(np.int64)
    if codes.max() >= len(book):
        raise ValueError("a value is numbered beyond the codebook")
    return book[torch.from_numpy(codes)]


_VALUES: dict[str, Callable[[Mapping[str, Bytes], torch.dtype, str], Tensor]] = {
    OWN: _from_own,
    HALF: _from_half,
    BOOK: _from_book,
}
