"""The page of the sparse format: its example is a real file, its reader reads all files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gaprune import load_sparse
from gaprune.export.sparse_entries import ExportOptions
from gaprune.export.sparse_writer import sparse_bytes
from gaprune.io.sparse import VERSION
from gaprune.io.sparse.index_codecs import CODINGS
from gaprune.io.sparse.tensors import DTYPES

PAGE = (Path(__file__).parent.parent / "docs" / "sparse-format.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
HOWS = {
    "zstd": ExportOptions(),
    "plain": ExportOptions(compress=False),
    "half": ExportOptions(half=True),
    "codebook": ExportOptions(codebook=5),
    "wide codebook": ExportOptions(codebook=300, compress=False),
}


def example() -> bytes:
    """Return the bytes of the dump on the page."""
    (dump,) = (text for kind, text in BLOCKS if not kind and text.startswith("00000000: "))
    lines = [line[10:57] for line in dump.splitlines()]
    return bytes.fromhex(" ".join(lines))


@pytest.fixture(scope="module")
def read() -> Callable[[Path], dict[str, np.ndarray]]:
    """The reader on the page."""
    space: dict[str, Any] = {}
    (code,) = (text for kind, text in BLOCKS if kind == "python" and "def read(" in text)
    exec(compile(code, "docs/sparse-format.md", "exec"), space)  # noqa: S102 - our own page
    found: Callable[[Path], dict[str, np.ndarray]] = space["read"]
    return found


def example_state() -> dict[str, Tensor]:
    """Return the state that the page shows."""
    space: dict[str, Any] = {"torch": torch}
    (code,) = (text for kind, text in BLOCKS if kind == "python" and "state = {" in text[:10])
    exec(compile(code, "docs/sparse-format.md", "exec"), space)  # noqa: S102 - our own page
    state: dict[str, Tensor] = space["state"]
    return state


def test_the_bytes_on_the_page_are_those_of_the_file(
    read: Callable[[Path], dict[str, np.ndarray]], tmp_path: Path
) -> None:
    """What is written today, what our loader reads, and what the reader on the page reads."""
    state = example_state()
    content = example()
    masks = {"fc.weight": state["fc.weight"] != 0}
    assert sparse_bytes(state, masks, ExportOptions(compress=False)) == content
    assert f"is these {len(content)} bytes" in PAGE
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    loaded, own = load_sparse(path), read(path)
    for name, value in state.items():
        assert torch.equal(loaded[name], value)
        assert np.array_equal(own[name], value.numpy())


def test_the_walk_through_the_bytes_is_right() -> None:
    """Every offset and every number that the page explains."""
    content = example()
    assert int.from_bytes(content[:8], "little") == 0x170
    assert content[0x178:0x17D].hex(" ") == "80 00 00 00 3f"
    assert content[0x17D:0x186].hex(" ") == "41 00 00 c0 3f 00 00 00 c0"
    assert content[0x186:].startswith(b'{"fc.weight":{"dtype":"float32"')
    assert len(content) - 0x186 == 281
    for said in ("`80` is 10000000", "`41` is 01000001", "`00 00 c0 3f` is 1.5", "281 bytes"):
        assert said in PAGE


def masked(shape: tuple[int, ...], density: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return a weight with zeros, and its mask."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < density
    return torch.randn(shape, generator=generator) * mask, mask


@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
def test_the_reader_on_the_page_reads_every_file(
    how: ExportOptions, read: Callable[[Path], dict[str, np.ndarray]], tmp_path: Path
) -> None:
    """All codings of places, values and orders, tied tensors, empty ones and single numbers."""
    state, masks = {}, {}
    shapes = {"many": 0.6, "few": 0.03, "rare": 0.0004, "none": 0.0, "whole": 1.0}
    for seed, (name, density) in enumerate(shapes.items()):
        state[name], masks[name] = masked((3, 40, 300), density, seed)
    state["tied"] = state["many"].clone()
    state |= {"one": torch.tensor(3.5), "empty": torch.zeros(0, 4), "smooth": torch.arange(500.0)}
    state |= {f"of {name}": torch.arange(9).to(dtype) for name, dtype in DTYPES.items()}
    path = tmp_path / "x.safetensors"
    path.write_bytes(sparse_bytes(state, masks, how, target="größer"))
    found, expected = read(path), load_sparse(path)
    assert list(found) == list(expected) == list(state)
    for name, value in expected.items():
        plain = value.float() if value.dtype == torch.bfloat16 else value
        assert found[name].shape == plain.shape
        assert np.array_equal(found[name], plain.numpy()), name


def test_a_flipped_bit_stops_the_reader_on_the_page(
    read: Callable[[Path], dict[str, np.ndarray]], tmp_path: Path
) -> None:
    """In the table and in the values; another version is refused too."""
    for place in (0x17A, 0x180, 0x190):
        content = bytearray(example())
        content[place] ^= 2
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            read(tmp_path / "x")
    later = example().replace(b'version\\": \\"1', b'version\\": \\"2')
    (tmp_path / "x").write_bytes(later)
    with pytest.raises(ValueError, match="a later version"):
        read(tmp_path / "x")


def test_the_page_names_all_that_there_is() -> None:
    """Every coding, every dtype, the version."""
    assert f"# The sparse format, version {VERSION}" in PAGE
    for name in (*CODINGS, *DTYPES, "own", "float16", "codebook", "raw", "planes", "same_as"):
        assert f"`{name}`" in PAGE or f'"{name}"' in PAGE, name
