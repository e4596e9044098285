"""The formats `compact` and `semi-structured` compute what the masked network does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from channel_networks import IMAGE, Residual, Separable, built, images, parameters
from export_cases import TINY, same_bits
from safetensors.torch import load_file
from torch import nn

from gaprune import InputOptions, Result, export, measure, prune
from gaprune.errors import GapruneError, InputError
from gaprune.exports import ExportResult
from gaprune.exports.compact import PROGRAM, load_program
from gaprune.exports.semi_structured_writer import LAYERS, load_semi_structured, two_four_layers
from gaprune.models.macs import macs_per_input

IMAGES = InputOptions(shape=IMAGE, range=(0, 1))
SHORT: dict[str, Any] = {**TINY, "calibration": ("procedural",)}


def prune_channels(kind: type[nn.Module], **settings: Any) -> Result:
    """Prune half of the channels of a network by magnitude."""
    return prune(built(kind), inputs=IMAGES, **SHORT, pattern="channel", sparsity=0.5, **settings)


@pytest.fixture(scope="module")
def result() -> Result:
    """A network with pruned channels."""
    return prune_channels(Separable)


@pytest.fixture(scope="module")
def compact(result: Result, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """Its compact export."""
    return export(result, "compact", tmp_path_factory.mktemp("compact") / "out")


@pytest.mark.parametrize("kind", [Separable, Residual])
@pytest.mark.parametrize("repair", [False, True])
def test_the_compact_network_equals_the_masked_one(
    kind: type[nn.Module], repair: bool, tmp_path: Path
) -> None:
    """Outputs agree to 1e-5 at any batch size; only parameters of kept channels are stored."""
    result = prune_channels(kind, repair=repair)
    written = export(result, "compact", tmp_path / "out")
    masked = result.repaired_model() if repair else result.pruned_model()
    assert masked is not None
    program = load_program(written.file)
    for count in (1, 2, 9):
        inputs = images(count)
        with torch.no_grad():
            assert torch.allclose(program(inputs), masked(inputs), atol=1e-5)
    widths = (
        int(result.masks[name].flatten(1).any(1).sum())
        for name in ("stem.weight", "point.weight" if kind is Separable else "down.weight")
    )
    assert parameters(program) == kind.count(*widths)  # type: ignore[attr-defined]
    state = load_file(written.path / "model.safetensors")
    names = {name for name, _ in built(kind).named_parameters()}
    sizes = sorted(value.numel() for _, value in program.named_parameters())
    assert sorted(value.numel() for name, value in state.items() if name in names) == sizes


@pytest.mark.slow
def test_programs_run_without_gaprune(
    result: Result, compact: ExportResult, tmp_path: Path
) -> None:
    """They need only torch."""
    inputs = images(4)
    torch.save(inputs, tmp_path / "inputs.pt")
    code = (
        "import sys\n"
        "sys.modules['gaprune'] = None\n"
        "import torch\n"
        f"model = torch.export.load('{compact.path / PROGRAM}').module()\n"
        "torch.save(model(torch.load('inputs.pt')).detach(), 'outputs.pt')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    with torch.no_grad():
        expected = result.pruned_model()(inputs)
    assert torch.allclose(torch.load(tmp_path / "outputs.pt"), expected, atol=1e-5)


def test_channels_without_readers_are_removed(tmp_path: Path) -> None:
    """This also holds for unstructured masks; every layer keeps a channel."""
    result = prune(built(Separable), sparsity=0.9, inputs=IMAGES, **SHORT)
    written = export(result, "compact", tmp_path / "out")
    readers = int(result.masks["head.weight"].any(0).sum())
    state = load_file(written.path / "model.safetensors")
    assert len(state["point.weight"]) == max(1, readers) < 8
    with torch.no_grad():
        outputs, expected = (
            model(images(5)) for model in (load_program(written.file), result.pruned_model())
        )
    assert torch.allclose(outputs, expected, atol=1e-5)


@pytest.mark.parametrize(("form", "pattern"), [("compact", "channel"), ("semi-structured", "2:4")])
def test_runs_without_the_pattern_are_refused(form: str, pattern: str, tmp_path: Path) -> None:
    """The error names the pattern to prune with, and nothing is written."""
    result = prune(built(Separable), sparsity=0.1, inputs=IMAGES, **SHORT)
    with pytest.raises(GapruneError, match=f"{form}: .*pattern='{pattern}'"):
        export(result, form, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [None, b"", b"not a program"])
def test_damaged_programs_are_refused(
    content: bytes | None, compact: ExportResult, tmp_path: Path
) -> None:
    """None stands for half of the file."""
    whole = compact.file.read_bytes()
    (tmp_path / PROGRAM).write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(InputError, match="damaged"):
        load_program(tmp_path / PROGRAM)


def prune_2_4(dtype: torch.dtype = torch.float32) -> Result:
    """Prune three linear layers 2:4; only the sizes of the first fit CUDA."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        layers = [nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 3)]
        model = nn.Sequential(*layers).to(dtype).eval()
    return prune(model, pattern="2:4", inputs=InputOptions(range=(0, 1)), **TINY)


@pytest.mark.parametrize(
    ("dtype", "half"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)]
)
def test_2_4_weights_are_packed_in_16_bits(dtype: torch.dtype, half: bool, tmp_path: Path) -> None:
    """The unpacked state is the same, bit for bit; a truncated file is refused."""
    result = prune_2_4(dtype)
    packs = half or dtype is torch.bfloat16
    written = export(result, "semi-structured", tmp_path / "out", half=half)
    description = json.loads((written.path / LAYERS).read_text())
    layers = description["layers"]
    assert description["other"] == []
    assert {name: layer["packed"] for name, layer in layers.items()} == {
        "0.weight": packs,
        "2.weight": False,  # 8 outputs
        "4.weight": False,
    }
    assert [layer["sizes_fit_cuda"] for layer in layers.values()] == [True, False, False]
    groups = sum(layer["groups"] for layer in layers.values())
    assert groups == result.target.layout.total / 4
    state = {name: value.half() if half else value for name, value in result.state_dict().items()}
    assert same_bits(load_semi_structured(written.path), state)
    stored = load_file(written.file)
    assert ("0.weight" in stored) is not packs
    if packs:
        assert stored["0.weight.packed"].shape == (32, 32)
    written.file.write_bytes(written.file.read_bytes()[:-9])
    with pytest.raises(InputError, match="damaged"):
        load_semi_structured(written.path)


def test_one_group_of_three_weights_breaks_the_pattern() -> None:
    """Vectors and widths that 4 doesn't divide never have it."""
    masks = {"a": torch.tensor([[1, 0, 1, 0] * 2, [0, 0, 0, 1] * 2]).bool()}
    assert two_four_layers(masks) == ("a",)
    masks["a"][1, 4:] = True
    assert two_four_layers(masks) == ()
    assert two_four_layers({"vector": torch.zeros(8).bool(), "odd": torch.zeros(2, 6).bool()}) == ()


def test_a_program_is_measured(result: Result, compact: ExportResult, tmp_path: Path) -> None:
    """It has fewer parameters and MACs than the masked network, and the same predictions."""
    masked = export(result, "dense", tmp_path / "dense").file
    assert same_bits(load_file(masked), result.state_dict())
    program, dense = (
        measure(file, target=result.target, runtimes=["torch"], batches=[1])[0]
        for file in (compact.file, masked)
    )
    assert program.kind == "program"
    assert program.macs is not None
    assert program.macs.total < macs_per_input(result.target.model, result.target.example())
    assert set(program.timed.pruned) == {"torch"}
    assert (program.agreement, program.accuracy) == (dense.agreement, dense.accuracy)
    assert program.parameters < dense.parameters
