"""Which values of a tensor are stored, as bytes: bits, CSR or gaps, whichever is smallest.

Every coding takes the kept places of a flat tensor, ascending, and gives named streams of bytes;
numbers are little-endian. Reading checks everything: a damaged or foreign stream never writes
outside its tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Places = NDArray[np.int64]
Streams = dict[str, Bytes]

CARRY = 255  # of `gaps`: so many places are skipped and none is kept


@dataclass(frozen=True)
class Coding:
    """How kept places become bytes.

    Attributes:
        encode: (places, shape) → streams, which together say which places are kept.
        decode: (streams, shape, how many are kept) → places; ValueError where they cannot be.
    """

    encode: Callable[[Places, tuple[int, ...]], Streams]
    decode: Callable[[Mapping[str, Bytes], tuple[int, ...], int], Places]


def _all_of(places: Places, shape: tuple[int, ...]) -> Streams:
    return {}


def _all(streams: Mapping[str, Bytes], shape: tuple[int, ...], kept: int) -> Places:
    return np.arange(prod(shape), dtype=np.int64)


def _to_bits(places: Places, shape: tuple[int, ...]) -> Streams:
    """One bit per value, most significant first: ⌈n/8⌉ bytes."""
    mask = np.zeros(prod(shape), dtype=bool)
    mask[places] = True
    return {"bits": np.packbits(mask)}


def _from_bits(streams: Mapping[str, Bytes], shape: tuple[int, ...], kept: int) -> Places:
    total = prod(shape)
    if len(streams["bits"]) != -(-total // 8):
        raise ValueError("the bits are not one per value")
    return np.flatnonzero(np.unpackbits(streams["bits"], count=total)).astype(np.int64)


def _grid(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns: the first axis, and all others as one."""
    rows = shape[0] if shape else 1
    return rows, prod(shape[1:])


def _column_type(columns: int) -> np.dtype[Any]:
    return np.dtype("u1" if columns <= 1 << 8 else "<u2" if columns <= 1 << 16 else "<u4")


def _to_csr(places: Places, shape: tuple[int, ...]) -> Streams:
    """Compressed sparse rows: uint32 `[rows + 1]` row starts, columns in as few bytes as fit."""
    rows, columns = _grid(shape)
    starts = np.searchsorted(places, np.arange(rows + 1, dtype=np.int64) * columns)
    return {
        "rows": _bytes(starts.astype("<u4")),
        "columns": _bytes((places % max(1, columns)).astype(_column_type(columns))),
    }


def _from_csr(streams: Mapping[str, Bytes], shape: tuple[int, ...], kept: int) -> Places:
    rows, columns = _grid(shape)
    starts = np.frombuffer(streams["rows"], "<u4").astype(np.int64)
    held = np.frombuffer(streams["columns"], _column_type(columns)).astype(np.int64)
    if len(starts) != rows + 1 or starts[0] or starts[-1] != len(held):
        raise ValueError("the rows do not cover the values")
    counts = np.diff(starts)
    if (counts < 0).any() or (held >= columns).any():
        raise ValueError("a row or a column lies outside the tensor")
    return np.repeat(np.arange(rows, dtype=np.int64) * columns, counts) + held


def _to_gaps(places: Places, shape: tuple[int, ...]) -> Streams:
    """Distances, one byte each: skip b and keep one; 255 skips 255 and keeps none."""
    skipped = np.diff(places, prepend=-1) - 1
    ends = np.cumsum(skipped // CARRY + 1)
    gaps = np.full(ends[-1] if len(ends) else 0, CARRY, dtype=np.uint8)
    gaps[ends - 1] = skipped % CARRY
    return {"gaps": gaps}


def _from_gaps(streams: Mapping[str, Bytes], shape: tuple[int, ...], kept: int) -> Places:
    gaps = streams["gaps"]
    keeps = gaps != CARRY
    places: Places = np.cumsum(gaps.astype(np.int64) + keeps)[keeps] - 1
    return places


CODINGS: dict[str, Coding] = {
    "all": Coding(_all_of, _all),
    "bits": Coding(_to_bits, _from_bits),
    "csr": Coding(_to_csr, _from_csr),
    "gaps": Coding(_to_gaps, _from_gaps),
}
"""`all` keeps every value and needs no bytes."""


def encodings(places: Places, shape: tuple[int, ...]) -> dict[str, Streams]:
    """Return every way to store which places are kept: coding → streams."""
    if len(places) == prod(shape):
        return {"all": {}}
    return {name: one.encode(places, shape) for name, one in CODINGS.items() if name != "all"}


def decode(coding: str, streams: Mapping[str, Bytes], shape: tuple[int, ...], kept: int) -> Places:
    """Return the kept places, ascending and inside the tensor.

    Raises:
        ValueError: the streams do not say that; the message says how.
    """
    if coding not in CODINGS:
        raise ValueError(f"its places are stored as {coding!r}, which is none of {list(CODINGS)}")
    try:
        places = CODINGS[coding].decode(streams, shape, kept)
    except KeyError as error:
        raise ValueError(f"its stream {error} is missing") from None
    if len(places) != kept:
        raise ValueError(f"{len(places)} places are kept where {kept} were stored")
    if kept and (places[-1] >= prod(shape) or (np.diff(places) <= 0).any()):
        raise ValueError("its places are not ascending inside the tensor")
    return places


def _bytes(values: NDArray[Any]) -> Bytes:
    return np.frombuffer(values.tobytes(), np.uint8)
