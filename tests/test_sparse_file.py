"""The sparse file: small, read bit for bit, refused when damaged, and as its page describes it."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_cases import same_bits
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from gaprune.errors import GapruneError, InputError
from gaprune.export.pruned_network import ExportOptions
from gaprune.export.sparse_writer import sparse_bytes
from gaprune.io.serialization import to_metadata
from gaprune.io.sparse import DTYPES, TABLE, VERSION, decode, entry_sha256, load_sparse
from gaprune.masks.supermask import top_k_mask
from gaprune.models.zoo import ZOO, load_zoo_network

PLAIN = ExportOptions(compress=False)
OPTIONS = {
    "zstd": ExportOptions(),
    "plain": PLAIN,
    "half": ExportOptions(half=True),
    "codebook": ExportOptions(codebook=5),
    "wide codebook": ExportOptions(codebook=300, compress=False),
}
PAGE = (Path(__file__).parent.parent / "docs" / "sparse-format.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
Reader = Callable[[Path], dict[str, np.ndarray]]


def pruned(shape: tuple[int, ...], density: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a weight with zeros, and its mask."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    mask = torch.rand(shape, generator=generator) < density
    return torch.where(mask, weight, weight.new_zeros(())), mask


def write(path: Path, content: bytes) -> Path:
    """Write a file and return its path."""
    path.write_bytes(content)
    return path


def run_block(marker: str, **names: Any) -> dict[str, Any]:
    """Run the code on the page that contains a text, and return its names."""
    (code,) = (text for kind, text in BLOCKS if kind == "python" and marker in text)
    exec(compile(code, "docs/sparse-format.md", "exec"), names)  # noqa: S102 - our own page
    return names


@pytest.fixture(scope="module")
def read() -> Reader:
    """The reader on the page."""
    reader: Reader = run_block("def read(")["read"]
    return reader


@given(st.lists(st.integers(0, 2000), unique=True, max_size=60), st.booleans())
def test_positions_come_back(positions: list[int], compress: bool) -> None:
    """Whatever is kept, the values return to their places, however far apart."""
    weight, mask = torch.zeros(2001), torch.zeros(2001, dtype=torch.bool)
    mask[positions] = True
    weight[positions] = torch.arange(len(positions)) + 1.0
    content = sparse_bytes({"w": weight}, {"w": mask}, ExportOptions(compress=compress))
    facts, data = parts(content)
    assert torch.equal(decode(facts, data), weight)


def parts(content: bytes) -> tuple[dict[str, Any], np.ndarray]:
    """Return the entry and the bytes of a file with one tensor, read by hand."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    about = json.loads(header["__metadata__"]["about"])
    middle = start + header["gaprune/data"]["data_offsets"][1]
    table = content[middle:]
    if about["table"]:
        import zstandard  # noqa: PLC0415 - optional

        table = zstandard.ZstdDecompressor().decompress(table)
    (facts,) = json.loads(table).values()
    return facts, np.frombuffer(content[start:middle], np.uint8)


@pytest.mark.parametrize("options", [ExportOptions(), PLAIN], ids=["zstd", "plain"])
@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_comes_back_bit_for_bit(
    tmp_path: Path, name: str, options: ExportOptions
) -> None:
    """NaN, infinities, −0.0, subnormal numbers, empty tensors and single numbers."""
    dtype = DTYPES[name]
    raw = torch.arange(64, dtype=torch.int64) * 7919 % 251
    values = raw.to(dtype) if dtype != torch.bool else raw > 100
    if dtype.is_floating_point or dtype.is_complex:
        odd = [math.nan, math.inf, -math.inf, -0.0, 0.0, torch.finfo(dtype).tiny / 2]
        values[: len(odd)] = torch.tensor(odd).to(dtype)
    few = torch.zeros_like(values)
    few[[3, 40]] = values[[3, 40]]  # −0.0 is kept under a mask too
    mask = torch.zeros(64, dtype=torch.bool)
    mask[[3, 40]] = True
    state = {"all": values, "grid": values.view(4, 4, 4), "none": values[:0], "one": values[3]}
    state["few"] = few
    path = write(tmp_path / "x.safetensors", sparse_bytes(state, {"few": mask}, options))
    assert same_bits(load_sparse(path), state)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_reader_on_the_page_reads_what_ours_does(
    options: ExportOptions, read: Reader, tmp_path: Path
) -> None:
    """At every density and of every dtype: tied, empty and single values too."""
    state, masks = {}, {}
    for seed, density in enumerate((0.6, 0.03, 0.0004, 0.0, 1.0)):
        name = f"density {density}"
        state[name], masks[name] = pruned((3, 40, 60), density, seed)
    state["zero"], masks["zero"] = state["density 0.6"].clone(), masks["density 0.6"]
    state["zero"].view(-1)[masks["zero"].view(-1).nonzero()[0]] = 0.0  # a kept weight may be 0
    state["tied"] = state["density 0.6"].clone()
    state |= {"one": torch.tensor(3.5), "empty": torch.zeros(0, 4)}
    state |= {f"of {name}": torch.arange(9).to(dtype) for name, dtype in DTYPES.items()}
    path = write(tmp_path / "x", sparse_bytes(state, masks, options, target="größer"))
    by_page, ours = read(path), load_sparse(path)
    assert list(by_page) == list(ours) == list(state)
    for name, value in ours.items():
        plain = value.float() if value.dtype == torch.bfloat16 else value
        assert by_page[name].shape == plain.shape
        assert np.array_equal(by_page[name], plain.numpy()), name
    if options in (ExportOptions(), PLAIN):
        assert same_bits(ours, state)


def test_the_example_on_the_page_is_a_real_file(read: Reader, tmp_path: Path) -> None:
    """Table and data are those that are written today; another version is refused."""
    state: dict[str, Tensor] = run_block('state = {\n    "fc.weight"', torch=torch)["state"]
    content = sparse_bytes(state, {"fc.weight": state["fc.weight"] != 0}, PLAIN)
    path = write(tmp_path / "x.safetensors", content)
    with safe_open(path, "numpy") as file:
        stored = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
    assert stored[TABLE].decode() in PAGE
    assert stored["gaprune/data"].hex(" ") in PAGE
    assert f"these {len(stored['gaprune/data'])} bytes" in PAGE
    assert f"# The sparse format, version {VERSION}" in PAGE
    assert all(f"`{name}`" in PAGE for name in DTYPES)
    for name, value in read(path).items():
        assert np.array_equal(value, state[name].numpy())
    for place in (0x149, 0x160):  # in the data, in the table
        damaged = bytearray(content)
        damaged[place] ^= 2
        with pytest.raises(ValueError, match="damaged"):
            read(write(tmp_path / "y", bytes(damaged)))
    with pytest.raises(ValueError, match="version"):
        read(write(tmp_path / "y", content.replace(b'version\\": \\"2', b'version\\": \\"3')))


def test_equal_tensors_are_stored_once(tmp_path: Path) -> None:
    """A tied parameter is stored under one of its names and comes back under all, unshared."""
    weight, mask = pruned((64, 64), 0.5)
    state = {"b": weight.clone(), "a": weight, "c": -weight}
    content = sparse_bytes(state, {"a": mask}, ExportOptions())
    alone = sparse_bytes({"a": weight, "c": -weight}, {"a": mask}, ExportOptions())
    assert len(content) < len(alone) + 200
    back = load_sparse(write(tmp_path / "x.safetensors", content))
    assert list(back) == list(state)
    assert same_bits(back, state)
    back["a"].zero_()
    assert torch.equal(back["b"], weight)


def test_half_rounds_the_kept_weights_and_nothing_else(tmp_path: Path) -> None:
    """The weights come back in their own dtype with the values of float16."""
    weight, mask = pruned((40, 40), 0.3)
    state = {"w": weight, "bias": torch.randn(40)}
    content = sparse_bytes(state, {"w": mask}, ExportOptions(half=True))
    back = load_sparse(write(tmp_path / "x.safetensors", content))
    assert torch.equal(back["bias"], state["bias"])
    assert torch.equal(back["w"], weight.half().float())
    with pytest.raises(InputError, match=r"half: .*1e\+06"):
        sparse_bytes({"w": weight * 0 + mask * 1e6}, {"w": mask}, ExportOptions(half=True))


@pytest.mark.parametrize("count", [1, 5, 300])
def test_a_codebook_shares_the_nearest_of_few_values(tmp_path: Path, count: int) -> None:
    """Each kept weight becomes the nearest of so many values; zeros stay zeros."""
    weight, mask = pruned((60, 70), 0.3)
    options = ExportOptions(codebook=count)
    path = write(tmp_path / "x.safetensors", sparse_bytes({"w": weight}, {"w": mask}, options))
    back = load_sparse(path)["w"]
    values = back[mask].unique()
    assert len(values) <= count
    assert not back[~mask].any()
    nearest = values[(weight[mask][:, None] - values).abs().argmin(1)]
    assert torch.equal(back[mask], nearest)
    # a layer with hardly more weights than shared values keeps its own
    small, small_mask = pruned((5, 8), 0.5)
    content = sparse_bytes({"w": small}, {"w": small_mask}, ExportOptions(codebook=64))
    assert same_bits(load_sparse(write(path, content)), {"w": small})


def small_file(folder: Path, options: ExportOptions) -> tuple[Path, dict[str, Tensor]]:
    """Write a file of a few hundred bytes with every kind of entry."""
    weight, mask = pruned((12, 30), 0.1)
    state = {"w": weight, "v": weight.clone(), "bias": torch.randn(3), "n": torch.tensor(7)}
    return write(folder / "x.safetensors", sparse_bytes(state, {"w": mask}, options)), state


@pytest.mark.parametrize("options", [ExportOptions(), PLAIN], ids=["zstd", "plain"])
def test_no_flipped_bit_gives_other_values(tmp_path: Path, options: ExportOptions) -> None:
    """Wherever a bit flips: an error, or the very same values (spaces in the header)."""
    path, state = small_file(tmp_path, options)
    content = path.read_bytes()
    refused = 0
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place * 5 % 8)
        path.write_bytes(flipped)
        try:
            back = load_sparse(path)
        except InputError as error:
            refused += 1
            assert str(error).startswith("sparse: ")  # noqa: PT017 - both ends are right
        else:
            assert same_bits(back, state)
    assert refused > 0.95 * len(content)


def test_no_part_of_a_file_is_taken_for_one(tmp_path: Path) -> None:
    """Cut off anywhere, or with more bytes behind its end."""
    path, _ = small_file(tmp_path, ExportOptions())
    content = path.read_bytes()
    for length in range(0, len(content), 13):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"sparse: .*damaged"):
            load_sparse(path)
    path.write_bytes(content + b"more")
    with pytest.raises(InputError, match="damaged"):
        load_sparse(path)


def test_other_files_are_refused_by_what_they_are(tmp_path: Path) -> None:
    """A dense file, a picture, a folder, a missing file, an older and a later version."""
    dense = tmp_path / "dense.safetensors"
    save_file({"w": torch.ones(3)}, dense, {"format": "pt"})
    with pytest.raises(InputError, match=r"--format sparse"):
        load_sparse(dense)
    with pytest.raises(InputError, match="damaged"):
        load_sparse(write(tmp_path / "x.png", b"\x89PNG\r\n" + bytes(50)))
    with pytest.raises(InputError, match="folder"):
        load_sparse(tmp_path)
    with pytest.raises(InputError, match="cannot read"):
        load_sparse(tmp_path / "missing.safetensors")
    for version, remedy in (("1", r"version 1 .*0\.2.*export"), ("3", "version 3 .*later gaprune")):
        stamp = to_metadata(format="gaprune sparse", version=version, table="", sha256="0")
        save_file({TABLE: torch.zeros(2, dtype=torch.uint8)}, dense, stamp)
        with pytest.raises(InputError, match=remedy):
            load_sparse(dense)


@pytest.mark.parametrize(
    ("facts", "data", "message"),
    [
        ({"kept": 1}, [200, 0], "positions"),
        ({"kept": 1}, [1, 1, 0], "positions"),
        ({"kept": 3}, [0, 0], "too few"),
        ({"kept": 1, "codebook": 1}, [0, 9, 7], "codebook"),
        ({}, [0] * 13, "more bytes"),
    ],
)
def test_entries_that_lie_never_write_outside_their_tensor(
    facts: dict[str, Any], data: list[int], message: str
) -> None:
    """What doesn't fit is refused, even with the right hash."""
    stored = np.array(data, np.uint8)
    entry = {"dtype": "uint8", "shape": [2, 6], "bytes": [len(data)], **facts}
    entry["sha256"] = entry_sha256(stored)
    with pytest.raises(ValueError, match=message):
        decode(entry, stored)


def test_what_cannot_be_written_is_refused() -> None:
    """A mask without a tensor, one over weights that are there, options that clash."""
    weight, mask = pruned((4, 4), 0.5)
    with pytest.raises(InputError, match="'v'"):
        sparse_bytes({"w": weight}, {"v": mask}, ExportOptions())
    with pytest.raises(InputError, match="mask removes"):
        sparse_bytes({"w": weight + 1}, {"w": mask}, ExportOptions())
    with pytest.raises(InputError, match=r"state\['w'\].*uint16"):
        sparse_bytes({"w": torch.zeros(2, dtype=torch.uint16)}, {}, PLAIN)
    with pytest.raises(InputError, match=r"half: .*codebook"):
        ExportOptions(half=True, codebook=4).check()
    with pytest.raises(InputError, match=r"codebook: .*got 0"):
        ExportOptions(codebook=0).check()


def test_mnist_cnn_at_a_fiftieth_takes_a_fortieth(tmp_path: Path) -> None:
    """At sparsity 0.98: ≤ 1/40 of the dense bytes in float32, ≤ 1/70 with a codebook of 32."""
    model, dense = load_zoo_network("mnist-cnn"), ZOO["mnist-cnn"].checkpoint
    state, masks = dict(model.state_dict()), {}
    for name, value in state.items():
        masks[name] = top_k_mask(value.abs(), round(0.02 * value.numel()))
        state[name] = torch.where(masks[name], value, value.new_zeros(()))
    bounds = ((ExportOptions(), 40), (ExportOptions(codebook=32), 70), (PLAIN, 38))
    for options, factor in bounds:
        content = sparse_bytes(state, masks, options)
        assert len(content) * factor <= dense.stat().st_size
    content = sparse_bytes(state, masks, ExportOptions())
    assert content == sparse_bytes(state, masks, ExportOptions())
    assert same_bits(load_sparse(write(tmp_path / "x.safetensors", content)), state)


def test_without_zstandard_uncompressed_files_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain file is written and read; compressed ones name the extra that brings it."""
    weight, mask = pruned((300, 30), 0.1)
    compressed = sparse_bytes({"w": weight}, {"w": mask}, ExportOptions())
    path = write(tmp_path / "x.safetensors", compressed)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    for action in (
        lambda: load_sparse(path),
        lambda: sparse_bytes({"w": weight}, {"w": mask}, ExportOptions()),
    ):
        with pytest.raises(GapruneError, match=r"gaprune\[export\]"):
            action()
    write(path, sparse_bytes({"w": weight}, {"w": mask}, PLAIN))
    assert torch.equal(load_sparse(path)["w"], weight)
