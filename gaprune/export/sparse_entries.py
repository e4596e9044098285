"""One tensor for a sparse file: its places and values as the smallest streams of bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaprune.errors import InputError
from gaprune.export.clustering import shared_values
from gaprune.io.sparse.compression import RAW, orders, squeeze
from gaprune.io.sparse.index_codecs import Bytes, encodings
from gaprune.io.sparse.tensors import BOOK, DEFAULTS, DTYPES, HALF, OWN, Entry, digest

_WIDE = (torch.float32, torch.float64)


@dataclass(frozen=True)
class ExportOptions:
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


class _Values(NamedTuple):
    """The streams of values, each with the bytes that one number takes."""

    streams: dict[str, tuple[Bytes, int]]


def write_entry(tensor: Tensor, mask: Tensor | None, how: ExportOptions) -> Entry:
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
    values, order = _store_values(_VALUES[coded](chosen, how), compress=how.compress)
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


def _own(kept: Tensor, how: ExportOptions) -> _Values:
    return _Values({"values": (_as_bytes(kept), kept.element_size())})


def _half(kept: Tensor, how: ExportOptions) -> _Values:
    rounded = kept.to(torch.float16)
    if (rounded.isinf() & ~kept.isinf()).any():
        raise InputError(
            f"half: a weight of {float(kept.abs().max()):g} is more than float16 holds (65,504); "
            "leave half out"
        )
    return _own(rounded, how)


def _book(kept: Tensor, how: ExportOptions) -> _Values:
    assert how.codebook is not None
    book, codes = shared_values(kept, how.codebook) if len(kept) else (kept, kept.long())
    if len(book) > len(kept) // 2:  # hardly shared: a number for each takes more than the values
        book, codes = kept, torch.zeros(0, dtype=torch.int64)
    width = np.dtype("u1" if len(book) <= 1 << 8 else "<u2")
    numbers = np.frombuffer(codes.numpy().astype(width).tobytes(), np.uint8)
    return _Values({"book": (_as_bytes(book), 1), "codes": (numbers, 1)})


_VALUES: dict[str, Callable[[Tensor, ExportOptions], _Values]] = {
    OWN: _own,
    HALF: _half,
    BOOK: _book,
}
