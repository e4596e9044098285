"""Streams of bytes, smaller where that is possible: Zstandard, on planes of bytes if that helps.

The k-th bytes of all values lie together in a plane. Signs and exponents of trained weights differ
little and shrink there; low bytes of fractions are noise and stay as they are.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from gaprune.errors import GapruneError
from gaprune.io.sparse.index_codecs import Bytes

LEVEL = 19  # of 22: the last that needs no more memory to read
USUAL = 3  # of the command zstd
RAW, PLANES = "raw", "planes"


def zstandard(what: str) -> Any:  # noqa: ANN401 - a module
    """Return the package.

    Raises:
        GapruneError: it is not installed; the message begins with `what`.
    """
    try:
        return importlib.import_module("zstandard")
    except ImportError as error:
        raise GapruneError(f"{what}: needs zstandard; pip install 'gaprune[export]'") from error


def orders(data: Bytes, width: int) -> Iterator[tuple[str, Bytes]]:
    """Yield the ways to lay out values of `width` bytes: as they come, and plane after plane."""
    yield RAW, data
    if width > 1:
        yield PLANES, np.ascontiguousarray(data.reshape(-1, width).T).reshape(-1)


def laid_out(data: Bytes, order: str, width: int) -> Bytes:
    """Return values as they came, out of an order of `orders`.

    Raises:
        ValueError: an unknown order, or no whole number of values.
    """
    if order not in (RAW, PLANES):
        raise ValueError(f"its values are stored as {order!r}, which is none of {RAW}, {PLANES}")
    if len(data) % width:
        raise ValueError("its values are cut off")
    if order == RAW:
        return data
    return np.ascontiguousarray(data.reshape(width, -1).T).reshape(-1)


def squeeze(data: Bytes) -> Bytes:
    """Return a Zstandard frame."""
    made = zstandard("compress").ZstdCompressor(level=LEVEL).compress(data.tobytes())
    return np.frombuffer(made, np.uint8)


def unsqueeze(data: Bytes, size: int) -> Bytes:
    """Return the `size` bytes of a Zstandard frame.

    Raises:
        GapruneError: the package is not installed.
        ValueError: damaged, or another number of bytes.
    """
    package = zstandard("sparse: the file is compressed, and reading it")
    try:
        if package.frame_content_size(data.tobytes()) != size:  # before anything is allocated
            raise ValueError(f"it does not hold the {size} bytes that were stored")
        made = package.ZstdDecompressor().decompress(data.tobytes(), max_output_size=size)
    except package.ZstdError as error:
        raise ValueError(f"its bytes cannot be decompressed ({error})") from error
    return np.frombuffer(made, np.uint8)


def zstd_size(data: bytes) -> int:
    """Return how many bytes the command `zstd` makes of a file's content."""
    return len(zstandard("measure").ZstdCompressor(level=USUAL).compress(data))
