"""What `gaprune export` writes is taken where weights are asked for, or refused with a reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import OWN, PRUNE, TINY, Net, Run
from export_cases import same_bits, tiny_result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gaprune import InputOptions, Result, export, load_masks, prune
from gaprune.errors import GapruneError, InputError
from gaprune.export.measure.file_contents import read_contents
from gaprune.export.pruned_network import ExportOptions
from gaprune.export.sparse_writer import sparse_bytes
from gaprune.io.semi_structured_packing import packed, unpacked
from gaprune.io.weights import load_state
from gaprune.masks.supermask import top_k_mask

OPTIONS = {
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
def test_sparse_files_are_state_dicts(
    options: dict[str, int], result: Result, tmp_path: Path
) -> None:
    """Read as weights they are what `load_sparse` reads; unrounded, bit for bit the state."""
    written = export(result, "sparse", tmp_path / "out", **options)  # type: ignore[arg-type]
    state = load_state(written.file)
    assert same_bits(state, dict(written_state(written.file)))
    assert same_bits(state, result.state_dict()) is not bool({"half", "codebook"} & options.keys())


def written_state(file: Path) -> dict[str, Tensor]:
    """Read it as its own loader does."""
    from gaprune import load_sparse  # noqa: PLC0415 - the public name

    return load_sparse(file)


def test_weights_packed_2_4_are_whole_again(tmp_path: Path) -> None:
    """In the order of the state dict, zeros where the pattern has them."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = [nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3)]
        model = nn.Sequential(*layers).to(torch.bfloat16).eval()
    chosen: dict[str, Any] = {
        "method": "magnitude",
        "calibration_count": 16,
        "validation_count": 16,
    }
    found = prune(model, pattern="2:4", inputs=InputOptions(range=(0, 1)), **chosen)
    written = export(found, "semi-structured", tmp_path / "out")
    assert "0.weight.packed" in load_file(written.file)
    state = load_state(written.file)
    assert same_bits(state, found.state_dict())
    assert list(state) == sorted(found.state_dict())
    assert read_contents(written.file).kind == "semi-structured"
    other = {"w.packed": torch.ones(3), "w.meta": torch.ones(3)}
    assert unpacked(other) == other  # somebody's own names


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4))
def test_packing_2_4_loses_nothing(seed: int, rows: int, columns: int) -> None:
    """Any matrix of the pattern comes back bit for bit."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(32 * rows, 64 * columns, generator=generator).half()
    groups = weight.view(-1, 4)
    for group in groups[: 10 * rows]:  # the others by magnitude
        group[torch.randperm(4, generator=generator)[:2]] = 0
    kept = groups.abs().argsort(1)[:, 2:]
    weight = torch.zeros_like(groups).scatter_(1, kept, groups.gather(1, kept)).view_as(weight)
    assert torch.equal(unpacked(packed("w", weight))["w"], weight)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_command_line_prunes_and_compares_from_a_sparse_file(
    options: dict[str, int], place: Path, run: Run
) -> None:
    """`--weights` takes it like any checkpoint."""
    assert run(*PRUNE, "--method", "magnitude", "--out", "run", "--quiet").code == 0
    file = export("run", "sparse", "out", **options).file  # type: ignore[arg-type]
    again = ("net.py:make", "--weights", str(file), "--range", "0,1", *TINY)
    ran = run("prune", *again, "--sparsity", "0.75", "--method", "magnitude", "--out", "two")
    assert ran.code == 0, ran.err
    model, state = Net(), load_state(file)
    model.load_state_dict(state)
    total = sum(mask.numel() for mask in load_masks("two").values())
    flat = torch.cat([model.fc1.weight.flatten(), model.fc2.weight.flatten()]).abs()
    kept = torch.cat([mask.flatten() for mask in load_masks("two").values()])
    assert torch.equal(kept, top_k_mask(flat.detach(), total // 4))
    ran = run("compare", *again, "--sparsity", "0.75", "--methods", "magnitude", "--out", "rows")
    assert ran.code == 0, ran.err


@pytest.mark.parametrize(
    "how", [ExportOptions(), ExportOptions(compress=False), ExportOptions(codebook=2)]
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_damaged_sparse_weights_are_refused(
    how: ExportOptions, data: st.DataObject, tmp_path: Path
) -> None:
    """Cut off or with a flipped bit: an error that begins with the option, or the same values."""
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    mask = top_k_mask(weight.abs(), 30)
    state = {"w": torch.where(mask, weight, weight.new_zeros(())), "b": torch.ones(3)}
    content = sparse_bytes(state, {"w": mask}, how)
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    whole = load_state(path)
    place = data.draw(st.integers(0, len(content) - 1))
    flipped = bytearray(content)
    flipped[place] ^= 1 << data.draw(st.integers(0, 7))
    for damaged in (bytes(flipped), content[:place]):
        path.write_bytes(damaged)
        try:
            found = load_state(path)
        except InputError as error:
            assert str(error).startswith("weights: ")  # noqa: PT017 - both ends are right
            assert str(path) in str(error)  # noqa: PT017
        else:  # a space of the header
            assert same_bits(found, whole)


@pytest.mark.parametrize("form", ["dense", "masks", "prune", "sparse"])
def test_a_flipped_bit_of_any_export_is_noticed(form: str, result: Result, tmp_path: Path) -> None:
    """Also in formats that hold no hash: `export.json` beside the file has one."""
    file = export(result, form, tmp_path / "out").file
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)
    with pytest.raises(GapruneError, match=r"(damaged|not what was written).*SHA-256"):
        read_contents(file)
    with pytest.raises(GapruneError, match=r"(damaged|not what was written).*SHA-256"):
        load_state(file)


def test_packed_masks_alone_notice_a_flipped_bit(result: Result, tmp_path: Path) -> None:
    """Any bits are masks, so that the file holds their hash; older files without one are read."""
    written = export(result, "masks", tmp_path / "out")
    lone = shutil.copy(written.file, tmp_path / "lone.safetensors")
    content = bytearray(Path(lone).read_bytes())
    content[-1] ^= 1
    Path(lone).write_bytes(content)
    with pytest.raises(InputError, match=r"mask: .*lone.safetensors is damaged .*SHA-256"):
        load_masks(lone)
    facts = json.loads(header(written.file)["__metadata__"]["about"])
    del facts["sha256"]
    save_file(load_file(written.file), lone, {"about": json.dumps(facts)})
    assert {name: int(mask.sum()) for name, mask in load_masks(lone).items()} == {
        name: int(mask.sum()) for name, mask in result.masks.items()
    }


def header(path: Path) -> dict[str, dict[str, str]]:
    """Read the header of a safetensors file by hand."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    found: dict[str, dict[str, str]] = json.loads(content[8 : 8 + size])
    return found


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.safetensors", b"\x89PNG\r\n" + bytes(50), "damaged or not a safetensors file"),
        ("x.onnx", b"anything", "must end in one of"),
        ("x.pt", b"anything", "damaged or not a state dict"),
    ],
)
def test_foreign_files_are_refused(
    name: str, content: bytes, message: str, place: Path, run: Run
) -> None:
    """One line, exit code 2, and nothing is written."""
    Path(name).write_bytes(content)
    ran = run("prune", "net.py:make", "--weights", name, "--sparsity", "0.5", "--out", "run")
    assert ran.code == 2
    assert message in ran.err
    assert not Path("run").exists()


def test_masks_are_no_weights(place: Path, run: Run) -> None:
    """The message says what the file is."""
    assert run(*PRUNE, "--method", "magnitude", "--out", "run", "--quiet").code == 0
    mask = ("net.py:make", "--weights", "run/mask.safetensors", *OWN[3:])
    ran = run("prune", *mask, "--sparsity", "0.5", *TINY, "--out", "two")
    assert ran.code == 2
    assert "file of masks" in ran.err
