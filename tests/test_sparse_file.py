"""The sparse file: small, exact, refused when damaged, and as its documentation describes it."""

from __future__ import annotations

import math
import re
import tempfile
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

from gaprune.errors import InputError
from gaprune.exports.pruned_network import ExportOptions
from gaprune.exports.sparse_writer import sparse_bytes
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
    """Run the code block of the documentation that contains a text; return its names."""
    (code,) = (text for kind, text in BLOCKS if kind == "python" and marker in text)
    exec(compile(code, "docs/sparse-format.md", "exec"), names)  # noqa: S102 - our own page
    return names


@pytest.fixture(scope="module")
def read() -> Reader:
    """The reader in the documentation."""
    reader: Reader = run_block("def read(")["read"]
    return reader


@given(st.lists(st.integers(0, 2000), unique=True, max_size=60), st.booleans())
def test_positions_come_back(positions: list[int], compress: bool) -> None:
    """Values return to their positions, however far apart they are."""
    weight, mask = torch.zeros(2001), torch.zeros(2001, dtype=torch.bool)
    mask[positions] = True
    weight[positions] = torch.arange(len(positions)) + 1.0
    content = sparse_bytes({"w": weight}, {"w": mask}, ExportOptions(compress=compress))
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        assert torch.equal(load_sparse(write(Path(file.name), content))["w"], weight)


@pytest.mark.parametrize("options", [ExportOptions(), PLAIN], ids=["zstd", "plain"])
@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_comes_back_bit_for_bit(
    tmp_path: Path, name: str, options: ExportOptions
) -> None:
    """NaN, infinities, −0.0, subnormal numbers, empty tensors and scalars are exact."""
    dtype = DTYPES[name]
    raw = torch.arange(64, dtype=torch.int64) * 7919 % 251
    values = raw.to(dtype) if dtype != torch.bool else raw > 100
    if dtype.is_floating_point or dtype.is_complex:
        special = [math.nan, math.inf, -math.inf, -0.0, 0.0, torch.finfo(dtype).tiny / 2]
        values[: len(special)] = torch.tensor(special).to(dtype)
    mask = torch.zeros(64, dtype=torch.bool)
    mask[[3, 40]] = True  # −0.0 is kept under a mask too
    masked = torch.zeros_like(values)
    masked[mask] = values[mask]
    state = {"all": values, "grid": values.view(4, 4, 4), "none": values[:0], "scalar": values[3]}
    state["masked"] = masked
    path = write(tmp_path / "x.safetensors", sparse_bytes(state, {"masked": mask}, options))
    assert same_bits(load_sparse(path), state)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_documented_reader_reads_the_same(
    options: ExportOptions, read: Reader, tmp_path: Path
) -> None:
    """Densities from 0 to 1, all dtypes, tied and empty tensors and scalars are read alike."""
    state, masks = {}, {}
    for seed, density in enumerate((0.6, 0.03, 0.0004, 0.0, 1.0)):
        name = f"density {density}"
        state[name], masks[name] = pruned((3, 40, 60), density, seed)
    state["zero"], masks["zero"] = state["density 0.6"].clone(), masks["density 0.6"]
    state["zero"].view(-1)[masks["zero"].view(-1).nonzero()[0]] = 0.0  # a kept weight may be 0
    state["tied"] = state["density 0.6"].clone()
    state |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4)}
    state |= {f"of {name}": torch.arange(9).to(dtype) for name, dtype in DTYPES.items()}
    path = write(tmp_path / "x", sparse_bytes(state, masks, options, target="größer"))
    documented, ours = read(path), load_sparse(path)
    assert list(documented) == list(ours) == list(state)
    for name, value in ours.items():
        plain = value.float() if value.dtype == torch.bfloat16 else value
        assert documented[name].shape == plain.shape
        assert np.array_equal(documented[name], plain.numpy()), name
    if options in (ExportOptions(), PLAIN):
        assert same_bits(ours, state)


def test_the_documented_example_is_a_real_file(read: Reader, tmp_path: Path) -> None:
    """Its table and data are what is written; damage and other versions are refused."""
    state: dict[str, Tensor] = run_block('state = {\n    "fc.weight"', torch=torch)["state"]
    content = sparse_bytes(state, {"fc.weight": state["fc.weight"] != 0}, PLAIN)
    path = write(tmp_path / "x.safetensors", content)
    with safe_open(path, "numpy") as file:
        stored = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
    assert stored[TABLE].decode() in PAGE
    assert stored["gaprune/data"].hex(" ") in PAGE
    assert f"{len(stored['gaprune/data'])} bytes" in PAGE
    assert f"version {VERSION}" in PAGE
    assert all(f"`{name}`" in PAGE for name in DTYPES)
    for name, value in read(path).items():
        assert np.array_equal(value, state[name].numpy())
    for index in (0x149, 0x160):  # in the data, in the table
        damaged = bytearray(content)
        damaged[index] ^= 2
        with pytest.raises(ValueError, match="damaged"):
            read(write(tmp_path / "y", bytes(damaged)))
    with pytest.raises(ValueError, match="version"):
        read(write(tmp_path / "y", content.replace(b'version\\": \\"2', b'version\\": \\"3')))


def test_equal_tensors_are_stored_once(tmp_path: Path) -> None:
    """A tied parameter comes back under all its names, without shared memory."""
    weight, mask = pruned((64, 64), 0.5)
    state = {"b": weight.clone(), "a": weight, "c": -weight}
    content = sparse_bytes(state, {"a": mask}, ExportOptions())
    alone = sparse_bytes({"a": weight, "c": -weight}, {"a": mask}, ExportOptions())
    assert len(content) < len(alone) + 200
    loaded = load_sparse(write(tmp_path / "x.safetensors", content))
    assert list(loaded) == list(state)
    assert same_bits(loaded, state)
    loaded["a"].zero_()
    assert torch.equal(loaded["b"], weight)


def test_half_rounds_only_masked_tensors(tmp_path: Path) -> None:
    """Weights come back in their own dtype with values of float16; larger ones are refused."""
    weight, mask = pruned((40, 40), 0.3)
    state = {"w": weight, "bias": torch.randn(40)}
    content = sparse_bytes(state, {"w": mask}, ExportOptions(half=True))
    loaded = load_sparse(write(tmp_path / "x.safetensors", content))
    assert torch.equal(loaded["bias"], state["bias"])
    assert torch.equal(loaded["w"], weight.half().float())
    with pytest.raises(InputError, match=r"half: .*1e\+06"):
        sparse_bytes({"w": weight * 0 + mask * 1e6}, {"w": mask}, ExportOptions(half=True))


@pytest.mark.parametrize("count", [1, 5, 300])
def test_a_codebook_takes_the_nearest_value(tmp_path: Path, count: int) -> None:
    """Zeros stay zeros; a layer with few weights keeps its own."""
    weight, mask = pruned((60, 70), 0.3)
    options = ExportOptions(codebook=count)
    path = write(tmp_path / "x.safetensors", sparse_bytes({"w": weight}, {"w": mask}, options))
    loaded = load_sparse(path)["w"]
    values = loaded[mask].unique()
    assert len(values) <= count
    assert not loaded[~mask].any()
    nearest = values[(weight[mask][:, None] - values).abs().argmin(1)]
    assert torch.equal(loaded[mask], nearest)
    small, small_mask = pruned((5, 8), 0.5)
    content = sparse_bytes({"w": small}, {"w": small_mask}, ExportOptions(codebook=64))
    assert same_bits(load_sparse(write(path, content)), {"w": small})


@pytest.mark.parametrize("options", [ExportOptions(), PLAIN], ids=["zstd", "plain"])
def test_damage_never_changes_values(tmp_path: Path, options: ExportOptions) -> None:
    """A flipped bit is refused or harmless (a space of the header); so is every truncation."""
    weight, mask = pruned((12, 30), 0.1)
    state = {"w": weight, "v": weight.clone(), "bias": torch.randn(3), "n": torch.tensor(7)}
    content = sparse_bytes(state, {"w": mask}, options)
    path = tmp_path / "x.safetensors"
    refused = 0
    for index in range(len(content)):
        flipped = bytearray(content)
        flipped[index] ^= 1 << (index * 5 % 8)
        try:
            loaded = load_sparse(write(path, bytes(flipped)))
        except InputError as error:
            refused += 1
            assert str(error).startswith("sparse: ")  # noqa: PT017 - both outcomes are right
        else:
            assert same_bits(loaded, state)
    assert refused > 0.95 * len(content)
    for damaged in (*(content[:length] for length in range(0, len(content), 13)), content + b"x"):
        with pytest.raises(InputError, match="damaged"):
            load_sparse(write(path, damaged))


def test_other_files_are_refused(tmp_path: Path) -> None:
    """The error tells a dense file, an image, a folder, a missing file and versions apart."""
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.ones(3)}, path, {"format": "pt"})
    with pytest.raises(InputError, match="format='sparse'"):
        load_sparse(path)
    with pytest.raises(InputError, match="damaged"):
        load_sparse(write(tmp_path / "x.png", b"\x89PNG\r\n" + bytes(50)))
    with pytest.raises(InputError, match="folder"):
        load_sparse(tmp_path)
    with pytest.raises(InputError, match="cannot read"):
        load_sparse(tmp_path / "missing.safetensors")
    for version, remedy in (("1", r"version 1 .*0\.2"), ("3", "version 3 .*later")):
        metadata = to_metadata(format="gaprune sparse", version=version, table="", sha256="0")
        save_file({TABLE: torch.zeros(2, dtype=torch.uint8)}, path, metadata)
        with pytest.raises(InputError, match=remedy):
            load_sparse(path)


@pytest.mark.parametrize(
    ("facts", "data", "match"),
    [
        ({"kept": 1}, [200, 0], "positions"),
        ({"kept": 1}, [1, 1, 0], "positions"),
        ({"kept": 3}, [0, 0], "too few"),
        ({"kept": 1, "codebook": 1}, [0, 9, 7], "codebook"),
        ({}, [0] * 13, "more bytes"),
    ],
)
def test_inconsistent_entries_are_refused(
    facts: dict[str, Any], data: list[int], match: str
) -> None:
    """Values never land outside their tensor, even with the right hash."""
    stored = np.array(data, np.uint8)
    entry = {"dtype": "uint8", "shape": [2, 6], "bytes": [len(data)], **facts}
    entry["sha256"] = entry_sha256(stored)
    with pytest.raises(ValueError, match=match):
        decode(entry, stored)


def test_invalid_states_and_options_are_refused() -> None:
    """Masks need a tensor, removed weights are 0, and options must not clash."""
    weight, mask = pruned((4, 4), 0.5)
    with pytest.raises(InputError, match="'v'"):
        sparse_bytes({"w": weight}, {"v": mask}, PLAIN)
    with pytest.raises(InputError, match="'w'"):
        sparse_bytes({"w": weight + 1}, {"w": mask}, PLAIN)
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
    for options, factor in ((ExportOptions(codebook=32), 70), (PLAIN, 38), (ExportOptions(), 40)):
        content = sparse_bytes(state, masks, options)
        assert len(content) * factor <= dense.stat().st_size
    assert content == sparse_bytes(state, masks, ExportOptions())
    assert same_bits(load_sparse(write(tmp_path / "x.safetensors", content)), state)
