"""Exports are accepted as weights, and refused when they are damaged or hold no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import OWN, PRUNE, TINY, Net, Run
from export_cases import same_bits, tiny_result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from gaprune import InputOptions, Result, export, load_masks, load_sparse, prune
from gaprune.errors import GapruneError, InputError
from gaprune.exports.measure.file_contents import read_contents
from gaprune.exports.pruned_network import ExportOptions
from gaprune.exports.sparse_writer import sparse_bytes
from gaprune.io.semi_structured_packing import packed, unpacked
from gaprune.io.weights import load_state
from gaprune.masks.supermask import top_k_mask

OPTIONS: dict[str, dict[str, Any]] = {
    "zstd": {},
    "plain": {"compress": False},
    "half": {"half": True},
    "codebook": {"codebook": 4},
}


@pytest.fixture(scope="module")
def result() -> Result:
    """A pruned network with a tied parameter and BatchNorm."""
    return tiny_result()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_sparse_files_are_weights(options: dict[str, Any], result: Result, tmp_path: Path) -> None:
    """They hold what `load_sparse` reads; without rounding, bit for bit the state dict."""
    file = export(result, "sparse", tmp_path / "out", **options).file
    state = load_state(file)
    assert same_bits(state, load_sparse(file))
    assert same_bits(state, result.state_dict()) is not bool({"half", "codebook"} & options.keys())


def test_packed_2_4_weights_are_unpacked(tmp_path: Path) -> None:
    """The state dict comes back bit for bit; foreign tensors of similar names stay."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = [nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3)]
        model = nn.Sequential(*layers).to(torch.bfloat16).eval()
    counts: dict[str, Any] = {"calibration_count": 16, "validation_count": 16}
    inputs = InputOptions(range=(0, 1))
    result = prune(model, pattern="2:4", inputs=inputs, method="magnitude", **counts)
    file = export(result, "semi-structured", tmp_path / "out").file
    assert "0.weight.packed" in load_file(file)
    state = load_state(file)
    assert same_bits(state, result.state_dict())
    assert list(state) == sorted(result.state_dict())
    assert read_contents(file).kind == "semi-structured"
    foreign = {"w.packed": torch.ones(3), "w.meta": torch.ones(3)}
    assert unpacked(foreign) == foreign


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4))
def test_packing_2_4_loses_nothing(seed: int, rows: int, columns: int) -> None:
    """Any 2:4 matrix comes back bit for bit."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(32 * rows, 64 * columns, generator=generator).half().view(-1, 4)
    largest = torch.rand(dense.shape, generator=generator).argsort(1)[:, 2:]
    weight = torch.zeros_like(dense).scatter_(1, largest, dense.gather(1, largest))
    weight = weight.view(32 * rows, 64 * columns)
    assert torch.equal(unpacked(packed("w", weight))["w"], weight)


@pytest.mark.parametrize("options", [OPTIONS["zstd"], OPTIONS["codebook"]], ids=["zstd", "shared"])
def test_commands_take_sparse_files_as_weights(
    options: dict[str, Any], place: Path, run: Run
) -> None:
    """`prune` ranks the decompressed weights, and `compare` takes the file too."""
    assert run(*PRUNE, "--method", "magnitude", "--out", "run", "--quiet").code == 0
    file = export("run", "sparse", "out", **options).file
    again = ("net.py:make", "--weights", str(file), "--range", "0,1", *TINY, "--sparsity", "0.75")
    ran = run("prune", *again, "--method", "magnitude", "--out", "two")
    assert ran.code == 0, ran.err
    model = Net()
    model.load_state_dict(load_state(file))
    flat = torch.cat([model.fc1.weight.flatten(), model.fc2.weight.flatten()]).detach().abs()
    mask = torch.cat([mask.flatten() for mask in load_masks("two").values()])
    assert torch.equal(mask, top_k_mask(flat, len(flat) // 4))
    assert run("compare", *again, "--methods", "magnitude", "--out", "rows").code == 0


@pytest.mark.parametrize(
    "options", [ExportOptions(), ExportOptions(compress=False), ExportOptions(codebook=2)]
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(data=st.data())
def test_damaged_sparse_weights_are_refused(
    options: ExportOptions, data: st.DataObject, tmp_path: Path
) -> None:
    """A truncated file or a flipped bit gives an error that names the file, or the same values."""
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    mask = top_k_mask(weight.abs(), 30)
    state = {"w": torch.where(mask, weight, weight.new_zeros(())), "b": torch.ones(3)}
    content = sparse_bytes(state, {"w": mask}, options)
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    whole = load_state(path)
    index = data.draw(st.integers(0, len(content) - 1))
    flipped = bytearray(content)
    flipped[index] ^= 1 << data.draw(st.integers(0, 7))
    for damaged in (bytes(flipped), content[:index]):
        path.write_bytes(damaged)
        try:
            state = load_state(path)
        except InputError as error:
            assert str(error).startswith("weights: ")  # noqa: PT017 - both outcomes are right
            assert str(path) in str(error)  # noqa: PT017
        else:  # the bit of a space in the header
            assert same_bits(state, whole)


@pytest.mark.parametrize("form", ["dense", "masks", "prune", "sparse"])
def test_a_flipped_bit_of_any_export_is_noticed(form: str, result: Result, tmp_path: Path) -> None:
    """Formats without a hash of their own have one in `export.json`."""
    file = export(result, form, tmp_path / "out").file
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)
    for read in (read_contents, load_state):
        with pytest.raises(GapruneError, match="SHA-256"):
            read(file)


def test_packed_masks_are_checked_without_their_manifest(result: Result, tmp_path: Path) -> None:
    """Flipped bits, other shapes and truncated files are refused; files without hash are read."""
    content = export(result, "masks", tmp_path / "out").file.read_bytes()
    path = tmp_path / "moved.safetensors"
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    shape = b"[4, 1, 3, 3]"
    assert shape in content
    for damaged in (flipped, content.replace(shape, b"[9, 9, 3, 3]"), content[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"mask: .*moved.safetensors is damaged"):
            load_masks(path)
    size = int.from_bytes(content[:8], "little")
    facts = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["about"])
    del facts["sha256"]  # version 0.2 wrote none
    path.write_bytes(content)
    save_file(load_file(path), path, {"about": json.dumps(facts)})
    assert same_bits(load_masks(path), dict(result.masks))


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("x.safetensors", b"\x89PNG\r\n" + bytes(50), "damaged"),
        ("x.onnx", b"anything", ".safetensors"),
        ("x.pt", b"anything", "damaged"),
        ("run/mask.safetensors", None, "masks"),
    ],
)
def test_files_without_weights_are_refused(
    name: str, content: bytes | None, word: str, place: Path, run: Run
) -> None:
    """The exit code is 2, and nothing is written."""
    if content is None:
        assert run(*PRUNE, "--method", "magnitude", "--out", "run", "--quiet").code == 0
    else:
        Path(name).write_bytes(content)
    ran = run("prune", OWN[0], "--weights", name, *OWN[3:], "--sparsity", "0.5", "--out", "two")
    assert ran.code == 2
    assert word in ran.err
    assert not Path("two").exists()
