"""Arithmetic of fewer bits: what it may touch, what comes of it, and when it is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from repair_networks import Convolutional, Encoder, Perceptron, loop_evaluator, target_of
from search_cases import random_genes, seeded, tiny_evaluator
from torch import Tensor, nn
from torch.nn import functional

import gaprune
from gaprune.callbacks import Observer
from gaprune.config import NEUTRAL, make_settings
from gaprune.errors import InputError
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evaluation.forward_modes import GuidedForward, RepairedForward
from gaprune.evaluation.precision import PRECISIONS, SCALES, choose_precision, gradients, reduced
from gaprune.evolution.gradient import Refinement, refine
from gaprune.models.forward import deterministic
from gaprune.models.input_spec import InputOptions
from gaprune.runs.resume import CHANGEABLE
from gaprune.runs.setup import check_settings
from gaprune.workers.device import move_evaluator

cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch sees no CUDA GPU on this machine"
)


def strict() -> Evaluator:
    """Return an evaluator of linear layers with fresh and held calibration inputs."""
    return tiny_evaluator("logits", gradient_share=0.5)


def repaired() -> Evaluator:
    """Return a float32 evaluator of convolutions and BatchNorm with repair in the loop."""
    return loop_evaluator(target_of(Convolutional, (2, 6, 6), double=False))


def guided() -> Evaluator:
    """Return a float32 evaluator of attention whose steps are half repaired, with drift."""
    evaluator = loop_evaluator(target_of(Encoder, (5, 8), double=False), gradient_share=0.5)
    assert isinstance(evaluator.forward_mode, RepairedForward)
    return replace(
        evaluator, forward_mode=GuidedForward(evaluator.forward_mode, statistics_loss=1.0, fade=0.5)
    )


@pytest.fixture(params=[strict, repaired, guided])
def evaluator(request: pytest.FixtureRequest) -> Evaluator:
    """An evaluator of every way to answer."""
    make: Callable[[], Evaluator] = request.param
    return make()


def half(evaluator: Evaluator) -> Evaluator:
    """Return the evaluator in bfloat16."""
    return replace(evaluator, precision="bfloat16")


def masks_of(evaluator: Evaluator, count: int = 4) -> list[Tensor]:
    """Return random masks that keep half of the weights."""
    keep = evaluator.layout.total // 2
    return [
        random_genes(evaluator.layout, keep, seed).decode(evaluator.layout) for seed in range(count)
    ]


def test_fitness_is_close_to_that_of_all_bits(evaluator: Evaluator) -> None:
    """Not equal: the bits are really fewer. And the objective itself has them all."""
    for mask in masks_of(evaluator):
        narrow, wide = half(evaluator).fitness(mask), evaluator.fitness(mask)
        assert narrow == pytest.approx(wide, rel=0.05, abs=0.02)
        assert narrow != wide


def test_the_judge_has_all_bits(evaluator: Evaluator) -> None:
    """Verdicts, and outputs for final figures, are those of float32, bit for bit."""
    for mask in masks_of(evaluator):
        assert half(evaluator).validate(mask) == evaluator.validate(mask)
        inputs = evaluator.validation.inputs
        assert torch.equal(half(evaluator).outputs(mask, inputs), evaluator.outputs(mask, inputs))
        judged = half(evaluator).validation_outputs(mask, inputs)
        assert torch.equal(judged, evaluator.validation_outputs(mask, inputs))


def test_score_gradients_are_float32_and_point_the_same_way(evaluator: Evaluator) -> None:
    """The angle to those of float32 is small, and not 0."""
    for mask in masks_of(evaluator):
        narrow, wide = (
            one.score_gradient(mask, one.draw_batch(24, seeded()))
            for one in (half(evaluator), evaluator)
        )
        assert narrow.dtype == torch.float32
        assert functional.cosine_similarity(narrow, wide, dim=0) > 0.98
        assert not torch.equal(narrow, wide)


def test_a_batch_is_answered_in_fewer_bits_and_held_in_all(evaluator: Evaluator) -> None:
    """The dense network's answers have its own type, so that the loss is computed in it."""
    batch = half(evaluator).draw_batch(24, seeded())
    assert batch.teacher.dtype == batch.inputs.dtype == torch.float32
    assert torch.equal(batch.inputs, evaluator.draw_batch(24, seeded()).inputs)


@pytest.mark.parametrize("scope", ["allocated", "global", "layer"])
def test_refined_masks_are_exact(evaluator: Evaluator, scope: str) -> None:
    """As many weights as asked, float32 scores, and the same ones every time."""
    genes = random_genes(evaluator.layout, evaluator.layout.total // 3, 1, scope)
    plan = Refinement(steps=4, learning_rate=1.0, batch=16)
    first, second = (refine(genes, half(evaluator), plan, seeded(2)) for _ in range(2))
    assert first.scores.dtype == torch.float32
    assert torch.equal(first.scores, second.scores)
    assert int(first.decode(evaluator.layout).count_nonzero()) == genes.keep
    assert not torch.equal(first.scores, refine(genes, evaluator, plan, seeded(2)).scores)


@pytest.mark.parametrize(
    ("asked", "device", "dtype", "expected"),
    [
        ("float32", "cpu", torch.float32, "float32"),
        ("float32", "cuda", torch.float64, "float32"),
        ("auto", "cpu", torch.float32, "float32"),
        ("auto", "cuda", torch.float64, "float32"),
        ("auto", "cuda", torch.bfloat16, "float32"),
        ("bfloat16", "cpu", torch.float32, "bfloat16"),
        ("float16", "cuda", torch.float32, "float16"),
        pytest.param(
            *("auto", "cuda", torch.float32, "bfloat16"),
            marks=pytest.mark.skipif(
                torch.cuda.is_available() and not torch.cuda.is_bf16_supported(False),
                reason="the GPU here has no bfloat16",
            ),
        ),
    ],
)
def test_what_is_chosen(asked: str, device: str, dtype: torch.dtype, expected: str) -> None:
    """Fewer bits on a GPU, where all are float32 otherwise."""
    assert choose_precision(asked, device, dtype) == expected


@pytest.mark.parametrize(
    ("asked", "device", "dtype", "message"),
    [
        ("half", "cpu", torch.float32, "unknown name 'half'.*auto, bfloat16, float16, float32"),
        ("float16", "cpu", torch.float32, "float16 needs a GPU.*use --precision bfloat16"),
        ("bfloat16", "cpu", torch.float64, "bfloat16.*float64.*--precision"),
        ("float16", "cuda", torch.bfloat16, "float16.*in bfloat16.*--precision"),
    ],
)
def test_what_cannot_be_is_refused(
    asked: str, device: str, dtype: torch.dtype, message: str
) -> None:
    """With the way out."""
    with pytest.raises(InputError, match=f"^precision: {message}"):
        choose_precision(asked, device, dtype)


@pytest.mark.parametrize("name", ["half", "float16"])
def test_it_is_refused_before_anything_is_computed(name: str) -> None:
    """With the names of other settings."""
    with pytest.raises(InputError, match=r"^precision: "):
        check_settings(make_settings({"sparsity": 0.5, "precision": name, "device": "cpu"}))


def test_all_bits_are_no_autocast() -> None:
    """Also where the caller computes under one: nothing is switched."""
    with reduced("float32", torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu", torch.bfloat16), reduced("float32", torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu")
    with reduced("bfloat16", torch.device("cpu")):
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
    with reduced("float16", torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")


def in_halves(size: float) -> tuple[Tensor, Tensor]:
    """Return a float32 leaf and a loss whose gradient by it, `size` each, passes float16."""
    leaf = torch.full((3,), 0.5, requires_grad=True)
    return leaf, (leaf.half() * 1.0).float().sum() * size


@pytest.mark.parametrize("size", [1e-9, 1e-6, 1e-3, 1.0, 1e3, 3e4])
def test_small_gradients_survive_float16_by_a_scaled_loss(size: float) -> None:
    """Small ones are not rounded to 0, and large ones do not overflow."""
    leaf, loss = in_halves(size)
    (found,) = gradients(loss, [leaf], "float16")
    assert torch.allclose(found, torch.full((3,), size), rtol=2e-2 if size < 1e-8 else 1e-3)
    if size < 1e-7:  # the test's own float16 does what the scale is there for
        leaf, loss = in_halves(size)
        assert not gradients(loss, [leaf], "float32")[0].any()


def test_gradients_that_no_scale_makes_finite_come_out_as_they_are() -> None:
    """The caller skips such a step."""
    leaf, loss = in_halves(1e6)
    (found,) = gradients(loss, [leaf], "float16")
    assert not found.isfinite().any()
    assert SCALES[-1] == 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_leaf_that_the_loss_does_not_know_has_gradient_0(precision: str) -> None:
    """A prunable layer that forward does not use."""
    leaf, loss = in_halves(1.0)
    unused = torch.ones(2, requires_grad=True)
    found = gradients(loss, [leaf, unused], precision)
    assert torch.equal(found[1], torch.zeros(2))


class Picky(nn.Module):
    """A network that multiplies by a float32 matrix in a way that knows no other type."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.register_buffer("mix", torch.eye(4))

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, 6]` → `[N, 4]`."""
        hidden = self.layer(inputs)
        mixed = torch.empty(len(inputs), 4)
        return torch.mm(hidden, self.get_buffer("mix"), out=mixed)


def test_a_network_that_does_not_run_in_fewer_bits_is_named() -> None:
    """With the way out, before anything is searched."""
    picky = loop_evaluator(target_of(lambda: Perceptron(norm=True), (6,), double=False))
    with torch.random.fork_rng():
        model = Picky().eval().requires_grad_(False)
    evaluator = replace(picky, network=replace(picky.network, model=model), precision="bfloat16")
    with pytest.raises(InputError, match="^precision: .*cpu in bfloat16"):
        move_evaluator(evaluator, "cpu")
    assert move_evaluator(replace(evaluator, precision="float32"), "cpu").network.model is model


def test_a_network_that_overflows_only_there_is_named() -> None:
    """The dense network itself must be finite, or every candidate is the worst."""
    evaluator = loop_evaluator(target_of(Perceptron, (6,), double=False))
    huge = nn.Linear(6, 4).requires_grad_(False)
    nn.init.constant_(huge.bias, 3.4e38)  # float32 ends at 3.403e38, bfloat16 at 3.390e38
    assert huge(evaluator.search.inputs).isfinite().all()
    evaluator = replace(
        evaluator, network=replace(evaluator.network, model=huge), precision="bfloat16"
    )
    with pytest.raises(InputError, match="^precision: .*overflows.*bfloat16"):
        move_evaluator(evaluator, "cpu")


class Told(Observer):
    """Remembers warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str) -> None:
        """Remember it."""
        self.warnings.append(text)


def network() -> nn.Module:
    """Return a small network with seeded weights."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5))


SMALL: dict[str, Any] = {
    "calibration": ("procedural",),
    "calibration_count": 32,
    "validation_count": 32,
    "steps": 2,
    "population": 3,
    "offspring": 2,
}


def test_a_run_in_bfloat16_is_exact_and_says_so() -> None:
    """Budget and kept weights as ever; what was used stands in its settings."""
    net, inputs = network(), InputOptions((6,), kind="vector", range=(0, 1))
    asked = {**SMALL, "generations": 2, "precision": "bfloat16"}
    result = gaprune.prune(net, sparsity=0.7, inputs=inputs, **asked)
    again = gaprune.prune(net, sparsity=0.7, inputs=inputs, **asked)
    total = sum(mask.numel() for mask in result.masks.values())
    assert sum(int(mask.sum()) for mask in result.masks.values()) == round(0.3 * total)
    assert result.settings["precision"] == "bfloat16"
    for name, mask in result.masks.items():
        assert torch.equal(mask, again.masks[name])
        kept = result.state_dict()[name]
        assert torch.equal(kept, net.state_dict()[name] * mask)


def test_by_default_settings_say_what_was_used() -> None:
    """`auto` is resolved, so that a run can be repeated elsewhere."""
    inputs = InputOptions((6,), kind="vector", range=(0, 1))
    asked = {**SMALL, "generations": 0, "device": "cpu", "precision": "auto"}
    result = gaprune.prune(network(), sparsity=0.7, inputs=inputs, **asked)
    assert (result.settings["device"], result.settings["precision"]) == ("cpu", "float32")


def test_a_run_goes_on_in_its_own_precision(tmp_path: Path) -> None:
    """Another one would find other masks: refused. The same one gives the bits of a whole run."""
    net, inputs = network(), InputOptions((6,), kind="vector", range=(0, 1))
    asked = {**SMALL, "precision": "bfloat16", "observer": Observer()}
    asked |= {"preset": "black-box", "steps": None}
    whole = gaprune.prune(net, sparsity=0.7, inputs=inputs, **asked, generations=3)
    gaprune.prune(net, sparsity=0.7, inputs=inputs, **asked, generations=1, out=tmp_path / "run")
    with pytest.raises(InputError, match=r"^precision: .*'bfloat16'.*'float32'"):
        gaprune.resume(tmp_path / "run", model=net, precision="float32")
    resumed = gaprune.resume(tmp_path / "run", model=net, generations=3)
    assert resumed.settings["precision"] == "bfloat16"
    assert all(torch.equal(mask, resumed.masks[name]) for name, mask in whole.masks.items())
    assert [one.best for one in resumed.history] == [one.best for one in whole.history]
    assert "precision" not in {*NEUTRAL, *CHANGEABLE}


def test_a_run_may_go_on_elsewhere(tmp_path: Path) -> None:
    """On another device, which it says may change last bits; `auto` is what it is here."""
    net, inputs = network(), InputOptions((6,), kind="vector", range=(0, 1))
    asked = {**SMALL, "device": "cpu", "out": tmp_path / "run"}
    gaprune.prune(net, sparsity=0.7, inputs=inputs, **asked, generations=1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    told = Told()
    resumed = gaprune.resume(tmp_path / "run", model=net, observer=told, device="auto")
    assert resumed.settings["device"] == device
    warned = [text for text in told.warnings if text.startswith("device: cuda instead of cpu")]
    assert len(warned) == (device == "cuda")
    with pytest.raises(InputError, match=r"^device: 'cpu'.*--gpus-per-worker 0.5"):
        gaprune.resume(tmp_path / "run", model=net, gpus_per_worker=0.5, device="cpu")
    assert "device" in CHANGEABLE


@cuda
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_gpu_takes_fewer_bits(evaluator: Evaluator, precision: str) -> None:
    """Fitness and gradients are close to those of float32 there, verdicts equal, masks exact."""
    wide = move_evaluator(evaluator, "cuda")
    narrow = move_evaluator(replace(evaluator, precision=precision), "cuda")
    genes = random_genes(evaluator.layout, evaluator.layout.total // 2)
    mask = genes.decode(evaluator.layout)
    with deterministic("cuda"):
        assert narrow.fitness(mask) == pytest.approx(wide.fitness(mask), rel=0.05, abs=0.02)
        assert narrow.validate(mask) == wide.validate(mask)
        here, there = (
            one.score_gradient(mask, one.draw_batch(24, seeded())).cpu() for one in (wide, narrow)
        )
        assert functional.cosine_similarity(here, there, dim=0) > 0.98
        refined = refine(genes, narrow, Refinement(4, 1.0, 16), seeded())
    assert int(refined.decode(evaluator.layout).count_nonzero()) == genes.keep
