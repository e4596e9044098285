"""IDX files: valid ones built byte by byte as the format says, and damaged ones."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaprune.errors import InputError
from gaprune.models.zoo.mnist import read_idx

# code → (format of one value for struct, big-endian; examples at the ends of its range)
CODES: dict[int, tuple[str, list[float]]] = {
    0x08: ("B", [0, 1, 255]),
    0x09: ("b", [-128, -1, 127]),
    0x0B: ("h", [-32768, -2, 32767]),
    0x0C: ("i", [-(2**31), 3, 2**31 - 1]),
    0x0D: ("f", [-0.5, 0.0, 65504.0]),
    0x0E: ("d", [-0.1, 1e300, 0.0]),
}


def idx_bytes(code: int, shape: tuple[int, ...], values: list[float]) -> bytes:
    """Return the content of an IDX file."""
    header = struct.pack(f">BBBB{len(shape)}I", 0, 0, code, len(shape), *shape)
    return header + struct.pack(f">{len(values)}{CODES[code][0]}", *values)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_every_type_is_read(tmp_path: Path, code: int, packed: bool) -> None:
    """Values, shape and native byte order; gzip is recognised by its content, not by its name."""
    raw = idx_bytes(code, (3, 1), CODES[code][1])
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(raw) if packed else raw)
    array = read_idx(path)
    assert array.shape == (3, 1)
    assert array.flatten().tolist() == CODES[code][1]
    assert array.dtype.isnative


@given(st.lists(st.integers(0, 4), max_size=4), st.binary(min_size=256, max_size=256))
def test_any_shape_is_read(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], raw: bytes
) -> None:
    """Scalars and axes of length 0 are read too; the last axis runs fastest."""
    path = tmp_path_factory.mktemp("idx") / "file"
    values = raw[: int(np.prod(shape, dtype=int))]
    path.write_bytes(idx_bytes(0x08, tuple(shape), list(values)))
    array = read_idx(path)
    assert array.shape == tuple(shape)
    assert array.tobytes() == values


SOUND = idx_bytes(0x08, (2, 3), [1, 2, 3, 4, 5, 6])
DAMAGED = {
    "empty": (b"", "got nothing"),
    "too short": (SOUND[:3], "got 00 00 08"),
    "another format": (b"\x89PNG" + SOUND, "got 89 50 4e 47"),
    "unknown type": (b"\0\0\x0a\x01" + SOUND[4:], "got 00 00 0a 01"),
    "cut in the header": (SOUND[:9], "header"),
    "cut in the data": (SOUND[:-1], "6 bytes.*fewer"),
    "too long": (SOUND + b"\0", "6 bytes.*more"),
    "huge": (b"\0\0\x0e\x03" + b"\xff" * 12 + b"\0", "from 17 to"),
    "cut gzip": (gzip.compress(SOUND)[:-5], "damaged"),
    "flipped gzip": (gzip.compress(SOUND)[:-6] + bytes(6), "damaged"),
    "garbage in gzip": (gzip.compress(SOUND)[:10] + b"\xff" * 20, "damaged"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused(tmp_path: Path, case: str) -> None:
    """The message names the file and what is wrong with it."""
    content, message = DAMAGED[case]
    path = tmp_path / "file.idx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"(?s)IDX file .*file\.idx: .*{message}"):
        read_idx(path)
