"""Networks that are smaller, or packed 2:4: they compute what the masked network does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from channel_networks import IMAGE, Residual, Separable, built, images, parameters
from export_cases import TINY, same_bits, tiny_result
from safetensors.torch import load_file
from torch import nn

from gaprune import InputOptions, Result, export, measure, prune, save_run
from gaprune.errors import GapruneError, InputError
from gaprune.export.compact import PROGRAM, load_program
from gaprune.export.semi_structured_writer import (
    LAYERS,
    load_semi_structured,
    two_four_layers,
)
from gaprune.models.macs import macs_per_input

IMAGES = InputOptions(shape=IMAGE, range=(0, 1))
SHORT: dict[str, Any] = {**TINY, "calibration": ("procedural",)}


def channels(kind: type[nn.Module], sparsity: float = 0.5, **stated: Any) -> Result:
    """Prune channels in a moment."""
    found = {**SHORT, "pattern": "channel", "sparsity": sparsity, **stated}
    return prune(built(kind), inputs=IMAGES, **found)


@pytest.mark.parametrize("kind", [Separable, Residual])
@pytest.mark.parametrize("repair", [False, True])
def test_the_smaller_network_answers_like_the_masked_one(
    kind: type[nn.Module], repair: bool, tmp_path: Path
) -> None:
    """To 1e-5, for any number of inputs, repaired or not; with as many parameters as stay."""
    result = channels(kind, repair=repair)
    written = export(result, "compact", tmp_path / "out")
    pruned = result.repaired_model() if repair else result.pruned_model()
    assert pruned is not None
    program = load_program(written.file)
    for count in (1, 2, 9):
        inputs = images(count)
        with torch.no_grad():
            assert torch.allclose(program(inputs), pruned(inputs), atol=1e-5)
    first, second = (
        int(result.masks[name].flatten(1).any(1).sum())
        for name in ("stem.weight", "point.weight" if kind is Separable else "down.weight")
    )
    assert parameters(program) == kind.count(first, second)  # type: ignore[attr-defined]
    state = load_file(written.path / "model.safetensors")
    sizes = sorted(value.numel() for _, value in program.named_parameters())
    own = {name for name, _ in built(kind).named_parameters()}
    assert sorted(value.numel() for name, value in state.items() if name in own) == sizes
    assert "did less" not in (written.path / "README.md").read_text()
    assert "the network is smaller" in (written.path / "README.md").read_text()


def test_a_process_without_gaprune_runs_the_program(tmp_path: Path) -> None:
    """It needs torch alone."""
    result = channels(Separable)
    written = export(result, "compact", tmp_path / "out")
    inputs = images(4)
    torch.save(inputs, tmp_path / "inputs.pt")
    code = (
        "import sys\n"
        "sys.modules['gaprune'] = None\n"
        "import torch\n"
        f"model = torch.export.load('{PROGRAM}').module()\n"
        "torch.save(model(torch.load('../inputs.pt')).detach(), '../outputs.pt')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=written.path, check=True, timeout=120)
    with torch.no_grad():
        expected = result.pruned_model()(inputs)
    assert torch.allclose(torch.load(tmp_path / "outputs.pt"), expected, atol=1e-5)


def test_channels_that_nobody_reads_leave_any_run(tmp_path: Path) -> None:
    """Also where single weights were pruned, and of a layer that nobody reads one stays."""
    sparse = prune(built(Separable), sparsity=0.9, inputs=IMAGES, **SHORT)
    masks = sparse.masks
    read = masks["head.weight"].any(0)
    written = export(sparse, "compact", tmp_path / "out")
    state = load_file(written.path / "model.safetensors")
    assert len(state["point.weight"]) == max(1, int(read.sum())) < 8
    with torch.no_grad():
        found, expected = load_program(written.file)(images(5)), sparse.pruned_model()(images(5))
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_run_in_which_every_channel_is_read_is_refused(tmp_path: Path) -> None:
    """With the way out, and nothing is left there."""
    result = prune(built(Separable), sparsity=0.1, inputs=IMAGES, **SHORT)
    with pytest.raises(GapruneError, match=r"compact: every channel .* --pattern channel"):
        export(result, "compact", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(GapruneError, match=r"semi-structured: .* prune with --pattern 2:4"):
        export(result, "semi-structured", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_programs_are_refused(tmp_path: Path) -> None:
    """Truncated, or something else."""
    written = export(channels(Separable), "compact", tmp_path / "out")
    content = written.file.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"not a program"):
        written.file.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged or not a program"):
            load_program(written.file)


def packable(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return layers that CUDA takes, and one that it does not."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        layers = [nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 3)]
        return nn.Sequential(*layers).to(dtype).eval()


def pruned_2_4(dtype: torch.dtype = torch.float32) -> Result:
    """Prune it 2:4."""
    return prune(packable(dtype), pattern="2:4", inputs=InputOptions(range=(0, 1)), **TINY)


@pytest.mark.parametrize("half", [False, True])
def test_2_4_is_checked_packed_and_read_back(half: bool, tmp_path: Path) -> None:
    """In 32 bits as it is, in 16 packed to half its size; the state is the same."""
    result = pruned_2_4()
    run = save_run(result, tmp_path / "run")
    written = export(run, "semi-structured", tmp_path / "out", half=half)
    provenance = json.loads((written.path / LAYERS).read_text())
    assert provenance["other"] == []
    assert {name: one["packed"] for name, one in provenance["layers"].items()} == {
        "0.weight": half,
        "2.weight": False,  # 8 outputs
        "4.weight": False,
    }
    assert [one["sizes_fit_cuda"] for one in provenance["layers"].values()] == [True, False, False]
    assert (
        sum(one["groups"] for one in provenance["layers"].values())
        == result.target.layout.total / 4
    )
    state = result.state_dict()
    expected = {name: one.half() if half else one for name, one in state.items()}
    assert same_bits(load_semi_structured(written.path), expected)
    names = load_file(written.file)
    assert ("0.weight" in names) is not half
    if half:
        assert names["0.weight.packed"].shape == (32, 32)


def test_networks_of_16_bits_are_packed_as_they_are(tmp_path: Path) -> None:
    """Without rounding."""
    result = pruned_2_4(torch.bfloat16)
    written = export(result, "semi-structured", tmp_path / "out")
    assert "0.weight.packed" in load_file(written.file)
    assert same_bits(load_semi_structured(written.path), result.state_dict())
    written.file.write_bytes(written.file.read_bytes()[:-9])
    with pytest.raises(InputError, match="damaged"):
        load_semi_structured(written.path)


def test_layers_that_break_the_pattern_stay_as_they_are(tmp_path: Path) -> None:
    """One group with three weights is enough."""
    masks = {"a": torch.tensor([[1, 0, 1, 0] * 2, [0, 0, 0, 1] * 2]).bool()}
    assert two_four_layers(masks) == ("a",)
    masks["a"][1, 4:] = True
    assert two_four_layers(masks) == ()
    assert two_four_layers({"vector": torch.zeros(8).bool(), "odd": torch.zeros(2, 6).bool()}) == ()


def test_other_formats_take_results_of_every_pattern(tmp_path: Path) -> None:
    """A mask is a mask."""
    for number, result in enumerate((channels(Separable), pruned_2_4(), tiny_result())):
        written = export(result, "dense", tmp_path / str(number))
        assert same_bits(load_file(written.file), result.state_dict())


def test_a_program_is_measured_as_it_is(tmp_path: Path) -> None:
    """Fewer parameters and multiply-adds than the dense network; it agrees like the masked one."""
    result = channels(Separable)
    written = export(result, "compact", tmp_path / "out")
    found = measure(written.file, target=result.target, runtimes=["torch"], batches=[1])[0]
    dense = macs_per_input(result.target.model, result.target.example())
    assert found.kind == "program"
    assert found.macs is not None
    assert found.macs.total < dense
    assert set(found.timed.pruned) == {"torch"}
    masked = export(result, "dense", tmp_path / "dense").file
    same = measure(masked, target=result.target, runtimes=["torch"], batches=[1])[0]
    assert (found.agreement, found.accuracy) == (same.agreement, same.accuracy)
    assert found.parameters < same.parameters
