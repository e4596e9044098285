"""One tensor of a sparse file: its places and values as streams of bytes, and back bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaprune.baselines.clustering import shared_values
from gaprune.errors import InputError
from gaprune.exports.positions import Bytes, decode, encodings
from gaprune.exports.squeezing import RAW, laid_out, orders, squeeze, unsqueeze

OWN, HALF, BOOK = "own", "float16", "codebook"
DIGITS = 16  # of the SHA-256 of a tensor's streams: chance passes one flaw in 2^64
DTYPES = {
    str(one).removeprefix("torch."): one
    for one in (
        *(torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.bool, torch.uint8),
        *(torch.int8, torch.int16, torch.int32, torch.int64, torch.complex64, torch.complex128),
    )
}
_WIDE = (torch.float32, torch.float64)


@dataclass(frozen=True)
class How:
    """How values are stored.

    Attributes:
        half: the kept weights in float16; they are rounded.
        codebook: the kept weights of each layer as so many shared values (k-means); or None.
        compress: with Zstandard where that is smaller.
    """

    half: bool = False
    codebook: int | None = None
    compress: bool = True

    @property
    def values(self) -> str:
        """How the kept weights are stored: a key of `_VALUES`."""
        return HALF if self.half else OWN if self.codebook is None else BOOK

    def check(self) -> None:
        """Raise unless the fields go together.

        Raises:
            InputError: they do not.
        """
        if self.half and self.codebook is not None:
            raise InputError("half: cannot be combined with codebook; leave one of them out")
        if self.codebook is not None and not 1 <= self.codebook <= 1 << 16:
            raise InputError(f"codebook: must be from 1 to 65,536 values, got {self.codebook}")


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


class _Values(NamedTuple):
    """The streams of values, each with the bytes that one number takes."""

    streams: dict[str, tuple[Bytes, int]]


def write_entry(tensor: Tensor, mask: Tensor | None, how: How) -> Entry:
    """Store a tensor.

    Args:
        tensor: any shape.
        mask: bool of its shape, if it was pruned; what it drops is 0. Without one every value
            whose bits are not all 0 is kept, exactly as it is.
        how: of the kept weights; a tensor without a mask is never rounded.

    Raises:
        InputError: a dtype without a name here, or weights that float16 cannot hold.
        GapruneError: an optional package is not installed.
    """
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise InputError(f"sparse: holds tensors of {', '.join(DTYPES)}, got {name}")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    kept = _nonzero(flat) if mask is None else mask.cpu().reshape(-1).numpy()
    places = np.flatnonzero(kept).astype(np.int64)
    coded = how.values if mask is not None and tensor.dtype in _WIDE else OWN
    chosen = flat if len(places) == len(flat) else flat[torch.from_numpy(places)]
    values, order = _store_values(_VALUES[coded].encode(chosen, how), compress=how.compress)
    coding, indices = _store_places(places, tuple(tensor.shape), compress=how.compress)
    stored = {**indices, **values}
    data = np.concatenate([one.data for one in stored.values()])
    facts = {
        "dtype": name,
        "shape": list(tensor.shape),
        "kept": len(places),
        "masked": mask is not None,
        "places": coding,
        "values": coded,
        "order": order,
        "streams": {key: one.sizes for key, one in stored.items()},
        "sha256": digest(data),
    }
    usual = DEFAULTS | {"kept": tensor.numel()}
    return Entry({key: fact for key, fact in facts.items() if fact != usual.get(key)}, data)


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
    values = _VALUES[facts["values"]].decode(streams, dtype, facts["order"])
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


class _Stored(NamedTuple):
    """A stream as it lies in the file: its bytes, and `[bytes]` or `[bytes, before zstd]`."""

    data: Bytes
    sizes: list[int]


Stored = dict[str, _Stored]


def _store_places(
    places: np.ndarray, shape: tuple[int, ...], *, compress: bool
) -> tuple[str, Stored]:
    """Choose the smallest coding."""
    made = {
        name: {key: _smaller(data, compress=compress) for key, data in streams.items()}
        for name, streams in encodings(places, shape).items()
    }
    best = min(made, key=lambda name: _size(made[name]))
    return best, made[best]


def _store_values(values: _Values, *, compress: bool) -> tuple[Stored, str]:
    """Choose the order of bytes that gives the smallest streams; one for all of them."""
    laid: dict[str, Stored] = {}
    for key, (data, width) in values.streams.items():
        for order, ordered in orders(data, width):
            laid.setdefault(order, {})[key] = _smaller(ordered, compress=compress)
    whole = {order: made for order, made in laid.items() if len(made) == len(values.streams)}
    best = min(whole, key=lambda order: _size(whole[order])) if compress else RAW
    return whole[best], best


def _size(stored: Stored) -> int:
    return sum(len(one.data) for one in stored.values())


def _smaller(data: Bytes, *, compress: bool) -> _Stored:
    if compress and len(data):
        made = squeeze(data)
        if len(made) < len(data):
            return _Stored(made, [len(made), len(data)])
    return _Stored(data, [len(data)])


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


def _nonzero(flat: Tensor) -> NDArray[np.bool_]:
    """Mark values with any bit set: −0.0 is one, so that reading gives it back."""
    width = flat.element_size()
    found: NDArray[np.bool_] = np.any(_as_bytes(flat).reshape(-1, width), axis=1)
    return found


def _as_bytes(flat: Tensor) -> Bytes:
    if not len(flat):
        return np.zeros(0, np.uint8)
    raw: Bytes = flat.contiguous().view(torch.uint8).numpy()
    return raw


def _as_tensor(data: Bytes, dtype: torch.dtype) -> Tensor:
    if not len(data):
        return torch.zeros(0, dtype=dtype)
    return torch.from_numpy(data.copy()).view(dtype)


def _own(kept: Tensor, how: How) -> _Values:
    return _Values({"values": (_as_bytes(kept), kept.element_size())})


def _from_own(streams: Mapping[str, Bytes], dtype: torch.dtype, order: str) -> Tensor:
    return _as_tensor(laid_out(streams["values"], order, dtype.itemsize), dtype)


def _half(kept: Tensor, how: How) -> _Values:
    rounded = kept.to(torch.float16)
    if (rounded.isinf() & ~kept.isinf()).any():
        raise InputError(
            f"half: a weight of {float(kept.abs().max()):g} is more than float16 holds (65,504); "
            "leave half out"
        )
    return _own(rounded, how)


def _from_half(streams: Mapping[str, Bytes], dtype: torch.dtype, order: str) -> Tensor:
    return _from_own(streams, torch.float16, order).to(dtype)


def _book(kept: Tensor, how: How) -> _Values:
    assert how.codebook is not None
    book, codes = shared_values(kept, how.codebook) if len(kept) else (kept, kept.long())
    if len(book) > len(kept) // 2:  # hardly shared: a number for each takes more than the values
        book, codes = kept, torch.zeros(0, dtype=torch.int64)
    width = np.dtype("u1" if len(book) <= 1 << 8 else "<u2")
    numbers = np.frombuffer(codes.numpy().astype(width).tobytes(), np.uint8)
    return _Values({"book": (_as_bytes(book), 1), "codes": (numbers, 1)})


def _from_book(streams: Mapping[str, Bytes], dtype: torch.dtype, order: str) -> Tensor:
    book = _as_tensor(streams["book"], dtype)
    if not len(streams["codes"]):
        return book
    width = np.dtype("u1" if len(book) <= 1 << 8 else "<u2")
    codes = np.frombuffer(streams["codes"], width).astype(np.int64)
    if codes.max() >= len(book):
        raise ValueError("a value is numbered beyond the codebook")
    return book[torch.from_numpy(codes)]


class _Form(NamedTuple):
    encode: Callable[[Tensor, How], _Values]
    decode: Callable[[Mapping[str, Bytes], torch.dtype, str], Tensor]


_VALUES: dict[str, _Form] = {
    OWN: _Form(_own, _from_own),
    HALF: _Form(_half, _from_half),
    BOOK: _Form(_book, _from_book),
}
