"""The sparse file: smaller, bit for bit the same, read piece by piece, and never half believed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_cases import same_bits
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.sparse import csr_array  # type: ignore[import-untyped]
from torch import Tensor, nn

from gaprune.errors import GapruneError, InputError
from gaprune.export.sparse_entries import ExportOptions
from gaprune.export.sparse_writer import sparse_bytes
from gaprune.io.sparse import SparseFile, load_sparse, load_sparse_into
from gaprune.io.sparse.index_codecs import CODINGS, decode
from gaprune.io.sparse.tensors import DTYPES
from gaprune.masks.supermask import top_k_mask
from gaprune.models.zoo import ZOO, load_zoo_network

PLAIN = ExportOptions(compress=False)
HOWS = (ExportOptions(), PLAIN)


def pruned(shape: tuple[int, ...], density: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a weight with zeros, and its mask."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    mask = torch.rand(shape, generator=generator) < density
    return torch.where(mask, weight, weight.new_zeros(())), mask


def write(path: Path, content: bytes) -> Path:
    """Put bytes into a file."""
    path.write_bytes(content)
    return path


@st.composite
def kept_places(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...]]:
    """Places in a tensor of up to three axes, some far from each other."""
    shape = tuple(draw(st.lists(st.integers(1, 40), min_size=1, max_size=3)))
    chosen = draw(st.sets(st.integers(0, math.prod(shape) - 1), min_size=1, max_size=40))
    return np.array(sorted(chosen), dtype=np.int64), shape


@pytest.mark.parametrize("coding", [name for name in CODINGS if name != "all"])
@given(kept_places())
def test_every_coding_gives_its_places_back(
    coding: str, case: tuple[np.ndarray, tuple[int, ...]]
) -> None:
    """Bits, CSR and gaps are read as they were written."""
    places, shape = case
    streams = CODINGS[coding].encode(places, shape)
    assert decode(coding, streams, shape, len(places)).tolist() == places.tolist()


def test_csr_is_that_of_scipy() -> None:
    """Row starts and columns are those of an independent conversion."""
    weight, mask = pruned((7, 300), 0.05)
    expected = csr_array(weight.numpy())
    streams = CODINGS["csr"].encode(np.flatnonzero(mask.numpy()).astype(np.int64), (7, 300))
    assert np.frombuffer(streams["rows"], "<u4").tolist() == expected.indptr.tolist()
    assert np.frombuffer(streams["columns"], "<u2").tolist() == expected.indices.tolist()


def test_gaps_are_those_counted_by_hand() -> None:
    """255 skips 255 values and keeps none; any other byte skips so many and keeps the next."""
    streams = CODINGS["gaps"].encode(np.array([0, 3, 259, 1000]), (1001,))
    assert streams["gaps"].tolist() == [0, 2, 255, 0, 255, 255, 230]


@pytest.mark.parametrize("how", HOWS, ids=["zstd", "plain"])
@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path, name: str, how: ExportOptions) -> None:
    """NaN, infinities, −0.0, numbers below the normal ones, empty tensors and single numbers."""
    dtype = DTYPES[name]
    raw = torch.arange(64, dtype=torch.int64) * 7919 % 251
    values = raw.to(dtype) if dtype != torch.bool else raw > 100
    if dtype.is_floating_point or dtype.is_complex:
        odd = [math.nan, math.inf, -math.inf, -0.0, 0.0, torch.finfo(dtype).tiny / 2]
        values[: len(odd)] = torch.tensor(odd).to(dtype)
    state = {"all": values, "grid": values.view(4, 4, 4), "none": values[:0], "one": values[3]}
    zeros = torch.zeros_like(values)
    zeros[[3, 40]] = values[[3, 40]]
    state["few"] = zeros
    path = write(tmp_path / "x.safetensors", sparse_bytes(state, {}, how))
    assert same_bits(load_sparse(path), state)


@pytest.mark.parametrize("how", HOWS, ids=["zstd", "plain"])
@pytest.mark.parametrize("density", [0.0, 0.001, 0.02, 0.3, 1.0])
def test_pruned_weights_and_masks_come_back(
    tmp_path: Path, density: float, how: ExportOptions
) -> None:
    """At every density, also where a kept weight happens to be 0."""
    weight, mask = pruned((30, 20, 3, 3), density)
    if mask.any():
        weight.view(-1)[mask.view(-1).nonzero()[0]] = 0.0
    state = {"conv.weight": weight, "conv.bias": torch.randn(30)}
    path = write(tmp_path / "x.safetensors", sparse_bytes(state, {"conv.weight": mask}, how))
    assert same_bits(load_sparse(path), state)
    with SparseFile(path) as file:
        masks = dict(file.masks())
    assert list(masks) == ["conv.weight"]
    assert torch.equal(masks["conv.weight"], mask)


def test_the_smallest_coding_is_taken_for_each_layer(tmp_path: Path) -> None:
    """Bits where much is kept, gaps where little is, CSR where next to nothing is."""
    state, masks = {}, {}
    for name, density in (("many", 0.4), ("few", 0.02), ("rare", 0.0005)):
        state[name], masks[name] = pruned((4, 60_000), density)
    path = write(tmp_path / "x.safetensors", sparse_bytes(state, masks, PLAIN))
    with SparseFile(path) as file:
        codings = {name: file._table[name]["places"] for name in file.names}
    assert codings == {"many": "bits", "few": "gaps", "rare": "csr"}


def test_it_is_smaller_than_a_fair_count_of_what_it_holds(tmp_path: Path) -> None:
    """At density 0.02, four bytes a value and one a place, and a little for the header."""
    weight, mask = pruned((200, 500), 0.02)
    content = sparse_bytes({"w": weight}, {"w": mask}, PLAIN)
    assert len(content) < 5 * int(mask.sum()) + 1000
    assert len(sparse_bytes({"w": weight}, {"w": mask}, ExportOptions())) < len(content)


def test_equal_tensors_are_stored_once(tmp_path: Path) -> None:
    """A tied parameter takes room under one of its names and comes back under all, unshared."""
    weight, mask = pruned((64, 64), 0.5)
    state = {"a": weight, "b": weight.clone(), "c": -weight}
    content = sparse_bytes(state, {"a": mask}, ExportOptions())
    alone = sparse_bytes({"a": weight, "c": -weight}, {"a": mask}, ExportOptions())
    assert len(content) < len(alone) + 200
    back = load_sparse(write(tmp_path / "x.safetensors", content))
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
    with pytest.raises(InputError, match=r"half: a weight of 1e\+06 is more than float16"):
        sparse_bytes({"w": weight * 0 + mask * 1e6}, {"w": mask}, ExportOptions(half=True))


@pytest.mark.parametrize("count", [1, 5, 300])
def test_a_codebook_shares_the_nearest_of_few_values(tmp_path: Path, count: int) -> None:
    """Each kept weight becomes one of so many values, the nearest of them; zeros stay zeros."""
    weight, mask = pruned((60, 70), 0.3)
    how = ExportOptions(codebook=count)
    path = write(tmp_path / "x.safetensors", sparse_bytes({"w": weight}, {"w": mask}, how))
    back = load_sparse(path)["w"]
    values = back[mask].unique()
    assert len(values) <= count
    assert not back[~mask].any()
    nearest = values[(weight[mask][:, None] - values).abs().argmin(1)]
    assert torch.equal(back[mask], nearest)


def test_a_codebook_of_as_many_values_loses_nothing(tmp_path: Path) -> None:
    """A layer with fewer weights than values keeps its own."""
    weight, mask = pruned((5, 8), 0.5)
    content = sparse_bytes({"w": weight}, {"w": mask}, ExportOptions(codebook=64))
    path = write(tmp_path / "x.safetensors", content)
    assert same_bits(load_sparse(path), {"w": weight})


def test_any_reader_of_safetensors_sees_the_streams(tmp_path: Path) -> None:
    """The file is what its page says, followed here by hand: gaps, then float32 values."""
    weight, mask = pruned((50, 40), 0.02)
    path = write(tmp_path / "x.safetensors", sparse_bytes({"w": weight}, {"w": mask}, PLAIN))
    with safe_open(path, "numpy") as file:
        about = json.loads(file.metadata()["about"])
        facts = json.loads(file.get_tensor("gaprune/table").tobytes())["w"]
        data = file.get_tensor("w")
    assert (about["format"], about["table"], facts["places"]) == ("gaprune sparse", "", "gaps")
    assert list(facts["streams"]) == ["gaps", "values"]
    gaps, values = data[: facts["streams"]["gaps"][0]], data[facts["streams"]["gaps"][0] :]
    flat = np.zeros(2000, np.float32)
    place, numbers = -1, iter(np.frombuffer(values, "<f4"))
    for gap in gaps.tolist():
        place += 255 if gap == 255 else gap + 1
        if gap != 255:
            flat[place] = next(numbers)
    assert np.array_equal(flat.reshape(50, 40), weight.numpy())


def test_a_network_is_filled_tensor_after_tensor(tmp_path: Path) -> None:
    """Its parameters and buffers take the values in place; another network is refused."""
    source = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    weight, mask = pruned((5, 6), 0.4)
    source[0].weight.data = weight
    path = write(
        tmp_path / "x.safetensors",
        sparse_bytes(dict(source.state_dict()), {"0.weight": mask}, ExportOptions()),
    )
    other = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    before = [parameter.data_ptr() for parameter in other.parameters()]
    load_sparse_into(other, path)
    assert same_bits(dict(other.state_dict()), dict(source.state_dict()))
    assert [parameter.data_ptr() for parameter in other.parameters()] == before
    with pytest.raises(InputError, match=r"names in .* must be those of Linear"):
        load_sparse_into(nn.Linear(6, 5), path)
    wider = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    with pytest.raises(InputError, match=r"0\.weight has shape \[5, 6\].*\[5, 7\]"):
        load_sparse_into(wider, path)


def test_tensors_are_read_one_after_the_other(tmp_path: Path) -> None:
    """What lies behind is not touched before it is asked for: a flaw at the end comes last."""
    state = {name: torch.rand(500) for name in "abc"}
    content = bytearray(sparse_bytes(state, {}, PLAIN))
    content[content.index(state["c"].numpy().tobytes()) + 7] ^= 1
    path = write(tmp_path / "x.safetensors", bytes(content))
    with SparseFile(path) as file:
        read = file.items()
        assert [next(read)[0], next(read)[0]] == ["a", "b"]
        with pytest.raises(InputError, match=r"tensor 'c': its bytes are not those"):
            next(read)


def small_file(folder: Path, how: ExportOptions) -> tuple[Path, dict[str, Tensor]]:
    """Write a file of a few hundred bytes with all that a file can hold."""
    weight, mask = pruned((12, 30), 0.1)
    state = {"w": weight, "v": weight.clone(), "bias": torch.randn(3), "n": torch.tensor(7)}
    return write(folder / "x.safetensors", sparse_bytes(state, {"w": mask}, how)), state


@pytest.mark.parametrize("how", HOWS, ids=["zstd", "plain"])
def test_no_flipped_bit_gives_other_values(tmp_path: Path, how: ExportOptions) -> None:
    """Wherever a bit flips: a clear error, or the very same values (spaces of the header)."""
    path, state = small_file(tmp_path, how)
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
    """Cut off anywhere, or with something behind its end."""
    path, _ = small_file(tmp_path, ExportOptions())
    content = path.read_bytes()
    for length in range(0, len(content), 13):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"sparse: .*damaged or not a sparse file"):
            load_sparse(path)
    path.write_bytes(content + b"more")
    with pytest.raises(InputError, match="damaged or not a sparse file"):
        load_sparse(path)


def test_other_files_are_refused_by_what_they_are(tmp_path: Path) -> None:
    """A dense file, a picture, a folder, nothing at all, and a later version."""
    dense = tmp_path / "dense.safetensors"
    save_file({"w": torch.ones(3)}, dense, {"format": "pt"})
    with pytest.raises(InputError, match=r"safetensors file of another kind.*--format sparse"):
        load_sparse(dense)
    with pytest.raises(InputError, match="damaged or not a sparse file"):
        load_sparse(write(tmp_path / "x.png", b"\x89PNG\r\n" + bytes(50)))
    with pytest.raises(InputError, match="is a folder; name the file inside it"):
        load_sparse(tmp_path)
    with pytest.raises(InputError, match="cannot read"):
        load_sparse(tmp_path / "missing.safetensors")
    with (
        SparseFile(small_file(tmp_path, ExportOptions())[0]) as file,
        pytest.raises(InputError, match=r"unknown name 'x'.*w"),
    ):
        file.read("x")


def test_streams_that_lie_never_write_outside_their_tensor() -> None:
    """What decodes to other places than were stored is refused, whatever its hash says."""
    lies: list[tuple[str, dict[str, Any], str | None]] = [
        ("gaps", {"gaps": [200]}, "not ascending inside"),
        ("gaps", {"gaps": [1, 255]}, None),
        ("gaps", {"gaps": [1, 1]}, "2 places are kept where 1"),
        ("bits", {"bits": [1]}, "not one per value"),
        ("csr", {"rows": [0, 0, 0, 0, 9, 0, 0, 0], "columns": [1]}, "rows do not cover"),
        ("csr", {"rows": [0] * 4 + [1, 0, 0, 0] + [1, 0, 0, 0], "columns": [77]}, "lies outside"),
        ("csr", {"columns": [1]}, "stream 'rows' is missing"),
        ("runs", {}, "none of"),
    ]
    for coding, streams, message in lies:
        arrays = {key: np.array(value, np.uint8) for key, value in streams.items()}
        if message is None:
            assert decode(coding, arrays, (2, 6), 1).tolist() == [1]
            continue
        with pytest.raises(ValueError, match=message):
            decode(coding, arrays, (2, 6), 1)


def test_what_cannot_be_written_is_refused() -> None:
    """A mask without a tensor, one over weights that are there, options that clash."""
    weight, mask = pruned((4, 4), 0.5)
    with pytest.raises(InputError, match="unknown name 'v'"):
        sparse_bytes({"w": weight}, {"v": mask}, ExportOptions())
    with pytest.raises(InputError, match="has weights that its mask drops"):
        sparse_bytes({"w": weight + 1}, {"w": mask}, ExportOptions())
    with pytest.raises(InputError, match="half: cannot be combined with codebook"):
        sparse_bytes({"w": weight}, {"w": mask}, ExportOptions(half=True, codebook=4))
    with pytest.raises(InputError, match="codebook: must be from 1 to 65,536 values, got 0"):
        sparse_bytes({"w": weight}, {"w": mask}, ExportOptions(codebook=0))


def test_mnist_cnn_at_a_fiftieth_takes_a_twentieth_and_a_thirty_fifth(tmp_path: Path) -> None:
    """At sparsity 0.98: ≤ 1/20 of the dense file in float32, ≤ 1/35 with a codebook."""
    model, dense = load_zoo_network("mnist-cnn"), ZOO["mnist-cnn"].checkpoint
    state, masks = dict(model.state_dict()), {}
    for name, value in state.items():
        masks[name] = top_k_mask(value.abs(), round(0.02 * value.numel()))
        state[name] = torch.where(masks[name], value, value.new_zeros(()))
    for how, part in ((ExportOptions(), 20), (PLAIN, 20), (ExportOptions(codebook=32), 35)):
        content = sparse_bytes(state, masks, how)
        assert len(content) * part <= dense.stat().st_size
    path = write(tmp_path / "x.safetensors", sparse_bytes(state, masks, ExportOptions()))
    assert same_bits(load_sparse(path), state)
    assert load_file(dense).keys() == state.keys()


def test_reading_an_uncompressed_file_needs_no_extra(tmp_path: Path) -> None:
    """Without Zstandard a plain file is read, and a compressed one is refused with the way out."""
    plain, _ = small_file(tmp_path, PLAIN)
    weight, mask = pruned((300, 30), 0.1)
    squeezed = write(
        tmp_path / "z.safetensors", sparse_bytes({"w": weight}, {"w": mask}, ExportOptions())
    )
    script = f"""
import sys
sys.modules["zstandard"] = None
from gaprune.errors import GapruneError
from gaprune.export import load_sparse
assert len(load_sparse({str(plain)!r})) == 4
try:
    load_sparse({str(squeezed)!r})
except GapruneError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "needs zstandard; pip install 'gaprune[export]'" in ran.stdout


def test_equal_networks_make_equal_files() -> None:
    """The same state gives the same bytes, so files can be compared by their hash."""
    weight, mask = pruned((20, 20), 0.3)
    one, other = (
        sparse_bytes({"w": weight}, {"w": mask}, ExportOptions(), target="x")
        for _ in pairwise("abc")
    )
    assert one == other


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing without Zstandard names the extra that brings it."""
    weight, mask = pruned((20, 20), 0.3)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(GapruneError, match=r"needs zstandard; pip install 'gaprune\[export\]'"):
        sparse_bytes({"w": weight}, {"w": mask}, ExportOptions())
    assert sparse_bytes({"w": weight}, {"w": mask}, PLAIN)
