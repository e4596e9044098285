"""Whole runs with the dense network on another device give the same results.

Bit for bit on a simulated device (`second_device.py`); exact budgets and repeated results on a GPU.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from gaprune.criteria import CRITERIA, score
from gaprune.errors import GapruneError, InputError
from gaprune.exports.pruned_network import find_target
from gaprune.io.checkpoints import read_checkpoint
from gaprune.io.run_files import read_config
from gaprune.models.input_spec import InputOptions, InputSpec
from gaprune.models.target import Target, target_from_module
from gaprune.repair import repair
from gaprune.runs.checkpointer import START
from gaprune.runs.open_directory import open_run, reopen_run
from gaprune.runs.prune import prepare_run, prune_target
from gaprune.runs.result import Result
from gaprune.workers import WorkerOptions, choose_device, on_device

cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch sees no CUDA GPU on this machine"
)
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")


class Tokens(nn.Module):
    """Classifies a sequence, or continues it as a causal language model."""

    def __init__(self, *, causal: bool = False) -> None:
        super().__init__()
        self.table, self.hidden = nn.Embedding(12, 4), nn.Linear(4, 8)
        self.head, self.causal = nn.Linear(8, 12 if causal else 4), causal

    def forward(self, ids: Tensor) -> Tensor:
        """`[N, L]` → `[N, 4]`, or `[N, L, 12]`."""
        words = self.table(ids)
        before = ids.new_ones(ids.shape[1], ids.shape[1]).tril()  # unlike cumsum, in a fixed order
        sums = before.to(words.dtype) @ words
        return self.head(self.hidden(sums if self.causal else sums[:, -1]).relu())  # type: ignore[no-any-return]


def normed() -> Target:
    """Return a network of vectors with a BatchNorm."""
    target = target_of(lambda: Perceptron(norm=True), (6,), double=False)
    return replace(target, inputs=InputSpec((6,), "vector"))


def small_images() -> Target:
    """Return a network of images with BatchNorms."""
    target = target_of(Convolutional, (2, 5, 5), double=False)
    return replace(target, inputs=InputSpec((2, 5, 5), "image"))


def sequences(*, causal: bool = False) -> Target:
    """Return a network of token ids."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return target_from_module(
            Tokens(causal=causal), inputs=InputOptions((5,), kind="tokens", vocabulary=12)
        )


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
    "guided": (normed, {"warmup": 2, "statistics_loss": 1, "feature_loss": 1.0}),
    "impressions": (small_images, {"calibration": ("impressions",), "method": "taylor"}),
    "token search": (sequences, {"calibration": ("impressions", "procedural"), "method": "snip"}),
    "language model": (
        lambda: sequences(causal=True),
        {"calibration": ("impressions",), "method": "magnitude"},
    ),
    "repair in the loop": (small_images, {"repair_in_loop": True, "preset": "black-box"}),
    "pareto": (normed, {"pareto": True, "generations": 2}),
    "limit": (normed, {"max_drop": 0.5, "sparsity": 0.8, "method": "magnitude"}),
    "classic": (normed, {"preset": "classic", "objective": "kl", "scope": "layer"}),
}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Use an empty cache of generated inputs; calling the fixture empties it again."""
    monkeypatch.setenv("GAPRUNE_CACHE", str(tmp_path / "cache"))
    return lambda: shutil.rmtree(tmp_path / "cache", ignore_errors=True)


def outcome_of(result: Result) -> tuple[Any, ...]:
    """Return everything in a result except seconds."""
    record = {**result.record(), "seconds": 0}
    repaired = result.repaired_model()
    states = [result.state_dict(), {} if repaired is None else repaired.state_dict()]
    tensors = [result.masks, *states, *result.front_masks]
    history = [replace(generation, seconds=0) for generation in result.history]
    return record, history, [bits_of(state) for state in tensors]


def bits_of(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Return tensors of the CPU as bytes."""
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def labelled(target: Target) -> Samples:
    """Return inputs with random labels."""
    return Samples(calibration_for(target, 20), torch.arange(20) % 3, "random labels")


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_gives_the_same_result_on_another_device(name: str) -> None:
    """All figures and masks, at every data level and with every kind of search."""
    make, options = RUNS[name]
    settings = make_settings({**TINY_RUN, **options})
    target = make()
    test = None if target.inputs.kind == "tokens" else labelled(target)
    here = prune_target(target, settings, test=test)
    assert here.target is target
    with second_device() as device:
        there = prune_target(target.to(device), settings, test=test)
    assert there.target.device == torch.device("cpu")
    assert outcome_of(there) == outcome_of(here)


@pytest.fixture
def plain_attention() -> Iterator[None]:
    """Attention by matrix products; the fast kernels differ between devices."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with sdpa_kernel(SDPBackend.MATH):
        yield
    torch.backends.mha.set_fastpath_enabled(fast)


SCORED: dict[str, Callable[[], Target]] = {
    "convolutions": lambda: target_of(Convolutional, (2, 5, 5), double=False),
    "attention": lambda: target_of(Encoder, (5, 8), double=False),
    "tokens": sequences,
}


@pytest.mark.slow
@pytest.mark.usefixtures("plain_attention")
@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("kind", SCORED)
def test_every_criterion_gives_the_same_scores(kind: str, name: str) -> None:
    """With calibration inputs and random numbers from the CPU."""
    target = SCORED[kind]()
    tokens = target.inputs.kind == "tokens"
    calibration = (
        torch.randint(12, (16, 5), generator=seeded()) if tokens else calibration_for(target, 16)
    )
    expected = score(name, target, calibration, seeded(1), 0.5)
    with second_device() as device:
        scores = score(name, target.to(device), calibration, seeded(1), 0.5)
        assert scores.device == FAR
        assert torch.equal(scores.cpu(), expected)


def test_a_comparison_gives_the_same_rows() -> None:
    """Methods that search, score, train or share weights."""
    methods = ("evolved", "magnitude", "structured-l2", "clustered", "imp:linear")
    settings: dict[str, Any] = {
        "device": "cpu",
        "calibration": ("procedural",),
        "preset": "black-box",
        "steps": None,
    }
    asked = spec(methods, (0.5,), settings={**settings, "batch": None}, clusters=2)
    asked = replace(asked, training=replace(asked.training, optimiser="sgd"))  # no fused kernels
    data = ComparisonData(labelled(normed()), labelled(normed()))
    here = compare_target(normed(), asked, data=data, observer=RecordingObserver()).rows
    with second_device() as device:
        there = compare_target(
            normed().to(device), asked, data=data, observer=RecordingObserver()
        ).rows
    assert [row.error for row in here] == [None] * len(methods)
    assert timeless(there) == timeless(here)


def test_a_target_moves_with_its_tensors() -> None:
    """Weights share memory with the model, ids refer to its embedding; the hash stays."""
    target = sequences()
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


def test_results_are_on_the_cpu(tmp_path: Path) -> None:
    """Masked states, copies, repairs and files; states are contiguous."""
    image = InputOptions((2, 5, 5), range=(0, 1))
    model = Residual().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    target = target_from_module(model, inputs=image)
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
    assert all(type(p) is nn.Parameter for p in result.pruned_model().parameters())


RESUMED: dict[str, Any] = {**TINY_RUN, "preset": "black-box", "steps": None, "batch": None}


@pytest.mark.parametrize("first", ["far", "here"])
def test_a_run_may_be_resumed_on_another_device(tmp_path: Path, first: str) -> None:
    """A checkpoint does not depend on the device."""
    target = normed()
    whole = prune_target(target, make_settings({**RESUMED, "generations": 3}))
    with second_device() as device:
        far = target.to(device)
        before, after = (far, target) if first == "far" else (target, far)
        with open_run(tmp_path / "run") as run_directory:
            prepare_run(before, make_settings(RESUMED), run_directory=run_directory).run()
        with reopen_run(tmp_path / "run") as run_directory:
            start = read_checkpoint(run_directory.checkpoint / START)
            settings = make_settings({**start.facts["settings"], "generations": 3})
            run = prepare_run(after, settings, run_directory=run_directory, start=start)
            result = run.run()
    assert outcome_of(result) == outcome_of(whole)


@without_cuda
def test_a_run_of_a_gpu_may_be_resumed_on_the_cpu(place: Path, run: Run) -> None:
    """The error names the option; exports need no GPU."""
    asked = ("--generations", "1", "--preset", "black-box", "--out", "run", "--device", "cpu")
    assert run("prune", *OWN, "--sparsity", "0.5", "--calibration-count", "32", *asked).code == 0
    config = place / "run" / "config.toml"
    stated = config.read_text()
    assert 'device = "cpu"' in stated
    config.write_text(stated.replace('device = "cpu"', 'device = "cuda"'))
    with pytest.raises(InputError, match=r"^device: 'cuda'.*device='cpu'"):
        gaprune.resume(place / "run")
    resumed = gaprune.resume(place / "run", device="cpu", generations=2)
    assert resumed.settings["device"] == "cpu"
    assert resumed.target.device == torch.device("cpu")
    config.write_text(config.read_text().replace('device = "cpu"', 'device = "cuda"'))
    network = find_target(read_config(config), config)
    assert network.weights_sha256 == resumed.target.weights_sha256


def test_the_device_of_the_dense_network() -> None:
    """`auto` is the GPU that the network is on."""
    first, second = torch.device("cuda:0"), torch.device("cuda:1")
    assert choose_device(WorkerOptions(device="cpu"), second) == "cpu"
    assert choose_device(WorkerOptions(), second) == "cuda:1"
    assert choose_device(WorkerOptions(), first) == choose_device(WorkerOptions())
    assert choose_device(WorkerOptions(2), second) == "cpu"


def test_exhausted_gpu_memory_is_an_error_of_the_device() -> None:
    """Also outside workers."""
    with pytest.raises(GapruneError, match=r"^device: .*cpu"), on_device("cpu"):
        raise torch.OutOfMemoryError("CUDA out of memory")


@cuda
@pytest.mark.parametrize(
    "command",
    [
        ("mnist-cnn",),
        [
            "mobile-student",
            "--calibration",
            "inversion,procedural",
            "--repair",
            "--inversions",
            "32",
        ],
    ],
    ids=lambda words: words[0],
)
def test_the_commands_work_on_a_gpu(
    command: Sequence[str], tmp_path: Path, run: Run, empty_cache: Callable[[], None]
) -> None:
    """Twice with the same result; masks load on the CPU."""
    few = ("--sparsity", "0.9", "--device", "cuda", "--generations", "1", "--steps", "4", "--json")
    small = [
        "--calibration-count",
        "64",
        "--validation-count",
        "64",
        "--population",
        "3",
        "--offspring",
        "2",
    ]
    records = []
    for name in ("first", "second"):
        ran = run("prune", *command, *few, *small, "--out", str(tmp_path / name))
        assert ran.code == 0, ran.err
        records.append({**json.loads(ran.out), "seconds": 0})
        empty_cache()
    assert records[0] == records[1]
    assert records[0]["settings"]["device"] == "cuda"
    assert records[0]["accuracy"]["dense"] > 0.8
    masks = [gaprune.load_masks(tmp_path / name) for name in ("first", "second")]
    assert bits_of(masks[0]) == bits_of(masks[1])


@cuda
@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_a_gpu_is_exact_and_repeats(name: str, empty_cache: Callable[[], None]) -> None:
    """Weights are frozen, and the same run gives the same result."""
    make, options = RUNS[name]
    settings = make_settings({**TINY_RUN, **options, "device": "cuda"})
    target = make()
    first = prune_target(target.to("cuda"), settings)
    empty_cache()
    second = prune_target(target.to("cuda"), settings)
    assert outcome_of(first) == outcome_of(second)
    assert first.target.weights_sha256 == target.weights_sha256
    state = first.state_dict()
    for key, mask in first.masks.items():
        assert torch.equal(state[key], target.weights[key] * mask)


@cuda
def test_the_result_of_a_gpu_run_is_on_the_cpu() -> None:
    """Where the network came from."""
    net = normed().model
    inputs = InputOptions((6,), kind="vector", range=(0, 1))
    result = gaprune.prune(net, inputs=inputs, **{**TINY_RUN, "device": "cuda"})
    assert all(p.device.type == "cpu" for p in result.pruned_model().parameters())
    assert next(net.parameters()).device.type == "cpu"
