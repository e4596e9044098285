"""Whole runs with the dense network on a device: nothing is left behind, results are the same.

On a second device of the CPU (`second_device.py`) bit for bit; on a GPU, where there is one, as far
as that can be.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import OWN, Run
from comparison_cases import RecordingObserver, spec, timeless
from repair_networks import Convolutional, Encoder, Perceptron, Residual, calibration_for, target_of
from safetensors.torch import load_file
from search_cases import seeded
from second_device import FAR, Far, second_device
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import gaprune
from gaprune.calibration.samples import Samples
from gaprune.comparison import ComparisonData, compare_target
from gaprune.config import make_settings
from gaprune.criteria import CRITERIA, DenseNetwork, score
from gaprune.errors import GapruneError, InputError
from gaprune.export.pruned_network import find_target
from gaprune.io.checkpoints import read_checkpoint
from gaprune.models.input_spec import InputOptions, InputSpec
from gaprune.models.target import Target, target_from_module
from gaprune.repair import repair
from gaprune.runs.checkpointer import START
from gaprune.runs.open_directory import open_run, reopen_run
from gaprune.runs.prune import prepare_run, prune_target
from gaprune.runs.result import Result
from gaprune.workers import WorkerOptions, choose_device, choose_driver_device, on_device

cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch sees no CUDA GPU on this machine"
)
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")


class Tokens(nn.Module):
    """Names one of four classes of a sequence, or continues it: a causal language model."""

    def __init__(self, *, causal: bool = False) -> None:
        super().__init__()
        self.table, self.hidden = nn.Embedding(12, 4), nn.Linear(4, 8)
        self.head, self.causal = nn.Linear(8, 12 if causal else 4), causal

    def forward(self, ids: Tensor) -> Tensor:
        """`[N, L]` → `[N, 4]`, or `[N, L, 12]`."""
        words = self.table(ids)
        before = ids.new_ones(ids.shape[1], ids.shape[1]).tril()  # cumsum adds in any order there
        sums = before.to(words.dtype) @ words
        return self.head(self.hidden(sums if self.causal else sums[:, -1]).relu())  # type: ignore[no-any-return]


def normed() -> Target:
    """Return a network of vectors with a BatchNorm."""
    target = target_of(lambda: Perceptron(norm=True), (6,), double=False)
    return replace(target, network=replace(target.network, inputs=InputSpec((6,), "vector")))


def small_images() -> Target:
    """Return a network of images with BatchNorms."""
    target = target_of(Convolutional, (2, 5, 5), double=False)
    return replace(target, network=replace(target.network, inputs=InputSpec((2, 5, 5), "image")))


def sequences(*, causal: bool) -> Target:
    """Return a network of token ids."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return target_from_module(
            Tokens(causal=causal), inputs=InputOptions((5,), kind="tokens", vocabulary=12)
        )


def writer() -> Target:
    """Return a network that writes sequences."""
    return sequences(causal=True)


def reader() -> Target:
    """Return a network that is shown sequences."""
    return sequences(causal=False)


TINY_RUN: dict[str, Any] = {
    "sparsity": 0.5,
    "device": "cpu",
    "generations": 1,
    "population": 2,
    "offspring": 2,
    "steps": 2,
    "batch": 8,
    "calibration": ("procedural",),
    "calibration_count": 16,
    "validation_count": 16,
    "inversions": 8,
    "impressions": 8,
    "gradient_count": 16,
}
Case = tuple[Callable[[], Target], dict[str, Any]]
RUNS: dict[str, Case] = {
    "noise": (normed, {"calibration": ("noise",), "method": "wanda", "repair": True}),
    "procedural": (normed, {"repair": True}),
    "inversion": (normed, {"calibration": ("auto", "inversion", "procedural"), "method": "lamp"}),
    "guided": (normed, {"warmup": 2, "statistics_loss": 1}),
    "impressions": (small_images, {"calibration": ("impressions",), "method": "taylor"}),
    "token search": (reader, {"calibration": ("impressions", "procedural"), "method": "snip"}),
    "written": (writer, {"calibration": ("impressions",), "method": "magnitude"}),
    "repair in the loop": (small_images, {"repair_in_loop": True, "preset": "black-box"}),
    "feature_loss": (normed, {"feature_loss": 1.0}),
    "pareto": (normed, {"pareto": True, "generations": 2}),
    "limit": (normed, {"max_drop": 0.5, "sparsity": 0.8, "method": "magnitude"}),
    "classic": (normed, {"preset": "classic", "objective": "kl", "scope": "layer"}),
}


@pytest.fixture(autouse=True)
def forget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Made inputs are made here and now, and anew when this is called."""
    monkeypatch.setenv("GAPRUNE_CACHE", str(tmp_path / "cache"))
    return lambda: shutil.rmtree(tmp_path / "cache", ignore_errors=True)


def found_by(result: Result) -> tuple[Any, ...]:
    """Return everything that a run found, but the seconds it took."""
    record = {**result.record(), "seconds": 0}
    repaired = result.repaired_model()
    states = [result.state_dict(), {} if repaired is None else repaired.state_dict()]
    tensors = [result.masks, *states, *result.front_masks]
    history = [replace(one, seconds=0) for one in result.history]
    return record, history, [bits_of(one) for one in tensors]


def bits_of(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Return tensors of the CPU as bytes."""
    return {name: one.numpy().tobytes() for name, one in tensors.items()}


def labelled(target: Target) -> Samples:
    """Return inputs with labels at random."""
    return Samples(calibration_for(target, 20), torch.arange(20) % 3, "labels at random")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_finds_the_same_wherever_its_network_is(name: str) -> None:
    """On every rung, with repair, many budgets or a limit: all figures and masks, bit for bit."""
    make, own = RUNS[name]
    settings = make_settings({**TINY_RUN, **own})
    target = make()
    test = None if target.inputs.kind == "tokens" else labelled(target)
    here = prune_target(target, settings, test=test)
    assert here.target is target
    with second_device() as device:
        there = prune_target(target.to(device), settings, test=test)
    assert there.target.device == torch.device("cpu")
    assert found_by(there) == found_by(here)


@pytest.fixture
def plain_attention() -> Iterator[None]:
    """Attention by plain products on every device: each has fast kernels of its own."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with sdpa_kernel(SDPBackend.MATH):
        yield
    torch.backends.mha.set_fastpath_enabled(fast)


SCORED: dict[str, Callable[[], Target]] = {
    "convolutions": lambda: target_of(Convolutional, (2, 5, 5), double=False),
    "attention": lambda: target_of(Encoder, (5, 8), double=False),
    "tokens": reader,
}


@pytest.mark.usefixtures("plain_attention")
@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("kind", SCORED)
def test_every_criterion_scores_the_same_there(kind: str, name: str) -> None:
    """Whether calibration inputs are there already or come from the CPU, as the draws do."""
    target = SCORED[kind]()
    tokens = target.inputs.kind == "tokens"
    calibration = (
        torch.randint(12, (16, 5), generator=seeded()) if tokens else calibration_for(target, 16)
    )
    expected = score(name, _seen(target), calibration, seeded(1), 0.5)
    with second_device() as device:
        found = score(name, _seen(target.to(device)), calibration, seeded(1), 0.5)
        assert found.device == FAR
        assert torch.equal(found.cpu(), expected)


def _seen(target: Target) -> DenseNetwork:
    return DenseNetwork(target.model, target.weights, target.layout, target.inputs)


def test_a_comparison_gives_the_same_rows() -> None:
    """Methods that search, score, train or share weights (channels are cut by another package)."""
    methods = ("evolved", "magnitude", "structured-l2", "clustered", "imp:linear")
    shown = {"device": "cpu", "calibration": ("procedural",), "preset": "black-box", "steps": None}
    asked = spec(methods, (0.5,), settings={**shown, "batch": None}, clusters=2)
    asked = replace(asked, training=replace(asked.training, optimiser="sgd"))  # no fused kernels
    data = ComparisonData(labelled(normed()), labelled(normed()))
    here = compare_target(normed(), asked, data=data, observer=RecordingObserver()).rows
    with second_device() as device:
        there = compare_target(
            normed().to(device), asked, data=data, observer=RecordingObserver()
        ).rows
    assert [row.error for row in here] == [None] * len(methods)
    assert timeless(there) == timeless(here)


def test_a_target_moves_with_all_that_it_holds() -> None:
    """Weights in the model's memory, the embedding that ids are known by; not the hash."""
    target = reader()
    with second_device() as device:
        moved = target.to(device)
        assert moved.to(device) is moved
        assert moved.device == FAR
        for name, weight in moved.weights.items():
            assert weight.data_ptr() == moved.model.get_parameter(name).data_ptr()
        assert moved.inputs.token_ids is not None
        assert moved.inputs.token_ids.embedding is moved.model.get_submodule("table")
        assert moved.weights_sha256 == target.weights_sha256
        back = moved.to("cpu")
    assert target.to("cpu") is target
    assert bits_of(back.model.state_dict()) == bits_of(target.model.state_dict())
    assert back.inputs.token_ids is not None
    assert back.inputs.token_ids.embedding is back.model.get_submodule("table")


def test_what_comes_out_lies_on_the_cpu(tmp_path: Path) -> None:
    """Masked states are contiguous there; files, copies and repairs are for every machine."""
    image = InputOptions((2, 5, 5), range=(0, 1))
    target = target_from_module(_channels_last(Residual()), inputs=image)
    masks = {
        name: torch.rand(w.shape, generator=seeded()) < 0.5 for name, w in target.weights.items()
    }
    with second_device() as device:
        moved = target.to(device)
        state = moved.masked_state(masks)
        copied = moved.masked_copy(masks).state_dict()
        fixed = repair(moved, masks, calibration_for(target)).state
        assert all(isinstance(value, Far) for value in copied.values())
        assert all(torch.equal(copied[name].cpu(), value) for name, value in state.items())
    assert all(type(value) is Tensor and value.is_contiguous() for value in state.values())
    assert bits_of(state) == bits_of(target.masked_state(masks))
    assert bits_of(fixed) == bits_of(repair(target, masks, calibration_for(target)).state)
    settings = make_settings({**TINY_RUN, "method": "magnitude", "repair": True})
    with second_device() as device, open_run(tmp_path / "run") as run_directory:
        result = prepare_run(normed().to(device), settings, run_directory=run_directory).run()
        run_directory.save(result)
    assert bits_of(load_file(tmp_path / "run" / "pruned.safetensors")) == bits_of(
        prune_target(normed(), settings).state_dict()
    )
    assert all(type(one) is nn.Parameter for one in result.pruned_model().parameters())


def _channels_last(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return model


RESUMED: dict[str, Any] = {**TINY_RUN, "preset": "black-box", "steps": None, "batch": None}


@pytest.mark.parametrize("first", ["far", "here"])
def test_a_run_goes_on_on_another_device(tmp_path: Path, first: str) -> None:
    """A checkpoint says nothing of a device: three generations are one there and two here."""
    target = normed()
    whole = prune_target(target, make_settings({**RESUMED, "generations": 3}))
    with second_device() as device:
        far = target.to(device)
        one, other = (far, target) if first == "far" else (target, far)
        with open_run(tmp_path / "run") as run_directory:
            prepare_run(one, make_settings(RESUMED), run_directory=run_directory).run()
        with reopen_run(tmp_path / "run") as run_directory:
            start = read_checkpoint(run_directory.checkpoint / START)
            settings = make_settings({**start.facts["settings"], "generations": 3})
            run = prepare_run(other, settings, run_directory=run_directory, start=start)
            result = run.run()
    assert found_by(result) == found_by(whole)


@without_cuda
def test_a_run_of_a_gpu_goes_on_without_one_where_that_is_asked_for(place: Path, run: Run) -> None:
    """The message says how, and then also its network is loaded on the CPU; exports need no GPU."""
    asked = ("--generations", "1", "--preset", "black-box", "--out", "run", "--device", "cpu")
    assert run("prune", *OWN, "--sparsity", "0.5", "--calibration-count", "32", *asked).code == 0
    config = place / "run" / "config.toml"
    stated = config.read_text()
    assert 'device = "cpu"' in stated
    config.write_text(stated.replace('device = "cpu"', 'device = "cuda"'))
    with pytest.raises(InputError, match=r"^device: 'cuda'.*--device cpu"):
        gaprune.resume(place / "run")
    resumed = gaprune.resume(place / "run", device="cpu", generations=2)
    assert resumed.settings["device"] == "cpu"
    assert resumed.target.device == torch.device("cpu")
    config.write_text(config.read_text().replace('device = "cpu"', 'device = "cuda"'))
    network = find_target(gaprune.config.read_config(config), "the run")
    assert network.weights_sha256 == resumed.target.weights_sha256


def test_the_network_lives_where_the_search_begins() -> None:
    """With Ray, that is the CPU of this process, whatever its workers reserve."""
    assert choose_driver_device(WorkerOptions(device="cpu")) == "cpu"
    assert choose_driver_device(WorkerOptions(2, gpus=0.5, device="cuda")) == "cpu"
    assert choose_driver_device(WorkerOptions()) == choose_device(WorkerOptions())


def test_auto_is_the_gpu_that_the_network_is_on() -> None:
    """Of several; what is asked for goes before."""
    assert choose_device(WorkerOptions(device="cpu"), torch.device("cuda:1")) == "cpu"
    assert choose_device(WorkerOptions(), torch.device("cuda:1")) == "cuda:1"
    assert choose_device(WorkerOptions(), torch.device("cuda:0")) == choose_device(WorkerOptions())
    assert choose_device(WorkerOptions(2), torch.device("cuda:1")) == "cpu"


def test_a_full_memory_is_told_with_the_way_out_wherever_it_happens() -> None:
    """Also while calibration inputs are made or criteria computed, in this process."""
    told = pytest.raises(GapruneError, match=r"^device: .*cpu")
    with told, on_device("cpu"):
        raise torch.OutOfMemoryError("CUDA out of memory")


@cuda
@pytest.mark.parametrize(
    "command",
    [
        ("mnist-cnn",),
        (
            "mobile-student",
            "--calibration",
            "inversion,procedural",
            "--repair",
            "--inversions",
            "32",
        ),
    ],
    ids=lambda words: words[0],
)
def test_the_commands_work_on_a_gpu(
    command: tuple[str, ...], tmp_path: Path, run: Run, forget: Callable[[], None]
) -> None:
    """From end to end, twice with the same result; the files are for every machine."""
    few = ("--sparsity", "0.9", "--device", "cuda", "--generations", "1", "--steps", "4", "--json")
    small = (
        "--calibration-count",
        "64",
        "--validation-count",
        "64",
        "--population",
        "3",
        "--offspring",
        "2",
    )
    records = []
    for place in ("one", "two"):
        ran = run("prune", *command, *few, *small, "--out", str(tmp_path / place))
        assert ran.code == 0, ran.err
        records.append({**json.loads(ran.out), "seconds": 0})
        forget()
    assert records[0] == records[1]
    assert records[0]["settings"]["device"] == "cuda"
    assert records[0]["accuracy"]["dense"] > 0.8
    masks = [gaprune.load_masks(tmp_path / place) for place in ("one", "two")]
    assert bits_of(masks[0]) == bits_of(masks[1])


@cuda
@pytest.mark.parametrize("name", RUNS)
def test_a_whole_run_on_a_gpu_is_exact_and_repeats(name: str, forget: Callable[[], None]) -> None:
    """On every rung: the budget, the bits of what stays, and the same result twice."""
    make, own = RUNS[name]
    settings = make_settings({**TINY_RUN, **own, "device": "cuda"})
    target = make()
    once = prune_target(target.to("cuda"), settings)
    forget()
    twice = prune_target(target.to("cuda"), settings)
    assert found_by(once) == found_by(twice)
    assert once.target.weights_sha256 == target.weights_sha256
    state = once.state_dict()
    for key, mask in once.masks.items():
        assert torch.equal(state[key], target.weights[key] * mask)


@cuda
def test_a_network_of_ones_own_is_pruned_on_a_gpu_and_comes_back() -> None:
    """What `prune` gives is for the CPU, where the network came from."""
    net = normed().model
    shown = InputOptions((6,), kind="vector", range=(0, 1))
    result = gaprune.prune(net, inputs=shown, **{**TINY_RUN, "device": "cuda"})
    assert all(one.device.type == "cpu" for one in result.pruned_model().parameters())
    assert next(net.parameters()).device.type == "cpu"
