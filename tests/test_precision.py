"""Reduced precision: it affects scoring and gradient steps only, and errors name it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from repair_networks import (
    Convolutional,
    Encoder,
    Perceptron,
    guided_evaluator,
    loop_evaluator,
    target_of,
)
from search_cases import random_genes, seeded, tiny_evaluator
from torch import Tensor, nn
from torch.nn import functional

import gaprune
from gaprune.callbacks import Observer
from gaprune.config import CHANGEABLE, NEUTRAL
from gaprune.errors import InputError
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evaluation.precision import PRECISIONS, SCALES, choose_precision, gradients, reduced
from gaprune.evolution.gradient import Refinement, refine
from gaprune.models.forward import deterministic
from gaprune.models.input_spec import InputOptions
from gaprune.workers.device import move_evaluator

cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch sees no CUDA GPU on this machine"
)


EVALUATORS: dict[str, Callable[[], Evaluator]] = {
    "strict": lambda: tiny_evaluator("logits", gradient_share=0.5),
    "repaired": lambda: loop_evaluator(target_of(Convolutional, (2, 6, 6), double=False)),
    "guided": lambda: guided_evaluator(
        target_of(Encoder, (5, 8), double=False),
        share=0.5,
        features=1.0,
        statistics_loss=1.0,
        fade=0.5,
    ),
}


@pytest.fixture(params=EVALUATORS)
def evaluator(request: pytest.FixtureRequest) -> Evaluator:
    """A float32 evaluator of every forward mode."""
    return EVALUATORS[request.param]()


def half(evaluator: Evaluator) -> Evaluator:
    """Return the evaluator in bfloat16."""
    return replace(evaluator, precision="bfloat16")


def test_only_fitness_has_reduced_precision(evaluator: Evaluator) -> None:
    """Validation scores and validation outputs have the bits of float32."""
    narrow, inputs = half(evaluator), evaluator.validation.inputs
    for seed in range(2):
        genes = random_genes(evaluator.layout, evaluator.layout.total // 2, seed)
        mask = genes.decode(evaluator.layout)
        assert narrow.fitness(mask) == pytest.approx(evaluator.fitness(mask), rel=0.05, abs=0.02)
        assert narrow.fitness(mask) != evaluator.fitness(mask)
        assert narrow.validate(mask) == evaluator.validate(mask)
        assert torch.equal(narrow.outputs(mask, inputs), evaluator.outputs(mask, inputs))
        outputs = narrow.validation_outputs(mask, inputs)
        assert torch.equal(outputs, evaluator.validation_outputs(mask, inputs))


def test_score_gradients_are_float32_and_point_in_nearly_the_same_direction(
    evaluator: Evaluator,
) -> None:
    """Inputs and teacher outputs of the batch are float32 too."""
    narrow = half(evaluator)
    mask = random_genes(evaluator.layout, evaluator.layout.total // 2).decode(evaluator.layout)
    batch, full_batch = narrow.draw_batch(24, seeded()), evaluator.draw_batch(24, seeded())
    assert torch.equal(batch.inputs, full_batch.inputs)
    gradient, full = narrow.score_gradient(mask, batch), evaluator.score_gradient(mask, full_batch)
    assert gradient.dtype == batch.teacher.dtype == batch.inputs.dtype == torch.float32
    assert functional.cosine_similarity(gradient, full, dim=0) > 0.98
    assert not torch.equal(gradient, full)


@pytest.mark.parametrize("scope", ["allocated", "layer"])
def test_refined_masks_have_the_exact_budget_and_repeat(evaluator: Evaluator, scope: str) -> None:
    """Scores stay float32."""
    genes = random_genes(evaluator.layout, evaluator.layout.total // 3, 1, scope)
    plan = Refinement(steps=2, learning_rate=1.0, batch=16)
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
def test_auto_reduces_the_precision_of_float32_on_a_gpu(
    asked: str, device: str, dtype: torch.dtype, expected: str
) -> None:
    """A stated precision is used as it is."""
    assert choose_precision(asked, device, dtype) == expected


@pytest.mark.parametrize(
    ("asked", "device", "dtype", "message"),
    [
        ("half", "cpu", torch.float32, ".*'half'.*auto, bfloat16, float16, float32"),
        ("float16", "cpu", torch.float32, "float16.*precision='bfloat16'"),
        ("bfloat16", "cpu", torch.float64, "bfloat16.*float64.*precision="),
        ("float16", "cuda", torch.bfloat16, "float16.*in bfloat16.*precision="),
    ],
)
def test_an_impossible_precision_is_refused(
    asked: str, device: str, dtype: torch.dtype, message: str
) -> None:
    """The error names an alternative."""
    with pytest.raises(InputError, match=f"^precision: {message}"):
        choose_precision(asked, device, dtype)


def test_full_precision_leaves_autocast_as_it_is() -> None:
    """Float16 has no effect on the CPU."""
    cpu = torch.device("cpu")
    with reduced("float32", cpu), reduced("float16", cpu):
        assert not torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu", torch.bfloat16), reduced("float32", cpu):
        assert torch.is_autocast_enabled("cpu")
    with reduced("bfloat16", cpu):
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16


def through_float16(size: float) -> tuple[Tensor, Tensor]:
    """Return a float32 leaf and a loss; gradients of `size` pass through float16."""
    leaf = torch.full((3,), 0.5, requires_grad=True)
    return leaf, (leaf.half() * 1.0).float().sum() * size


@pytest.mark.parametrize("size", [1e-9, 1e-6, 1.0, 3e4])
def test_a_scaled_loss_keeps_float16_gradients_in_range(size: float) -> None:
    """Without it, the smallest become 0."""
    leaf, loss = through_float16(size)
    (gradient,) = gradients(loss, [leaf], "float16")
    assert torch.allclose(gradient, torch.full((3,), size), rtol=2e-2 if size < 1e-8 else 1e-3)
    if size < 1e-7:
        leaf, loss = through_float16(size)
        assert not gradients(loss, [leaf], "float32")[0].any()


def test_gradients_that_overflow_at_every_scale_are_returned() -> None:
    """The caller skips such a step."""
    leaf, loss = through_float16(1e6)
    assert not gradients(loss, [leaf], "float16")[0].isfinite().any()
    assert SCALES[-1] == 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_leaf_without_influence_has_gradient_0(precision: str) -> None:
    """Such as a prunable layer that forward does not use."""
    leaf, loss = through_float16(1.0)
    unused = torch.ones(2, requires_grad=True)
    assert torch.equal(gradients(loss, [leaf, unused], precision)[1], torch.zeros(2))


class Float32Only(nn.Module):
    """A network that multiplies with `out=`, which refuses other dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.register_buffer("mix", torch.eye(4))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.layer(inputs)
        return torch.mm(hidden, self.get_buffer("mix"), out=torch.empty(len(inputs), 4))


def huge() -> nn.Module:
    """Return a network that overflows in bfloat16, which ends at 3.390e38, not in float32."""
    model = nn.Linear(6, 4)
    nn.init.constant_(model.bias, 3.4e38)
    return model


@pytest.mark.parametrize(
    ("build", "message"), [(Float32Only, "cpu in bfloat16"), (huge, "overflows.*bfloat16")]
)
def test_a_network_that_fails_in_bfloat16_is_refused(
    build: Callable[[], nn.Module], message: str
) -> None:
    """Before the search; in float32 it runs."""
    evaluator = loop_evaluator(target_of(Perceptron, (6,), double=False))
    model = build().eval().requires_grad_(False)
    evaluator = replace(evaluator, network=replace(evaluator.network, model=model))
    with pytest.raises(InputError, match=f"^precision: .*{message}"):
        move_evaluator(half(evaluator), "cpu")
    assert move_evaluator(evaluator, "cpu").network.model is model


RUN: dict[str, Any] = {
    "sparsity": 0.7,
    "inputs": InputOptions((6,), kind="vector", range=(0, 1)),
    "calibration": ("procedural",),
    "calibration_count": 32,
    "validation_count": 32,
    "population": 3,
    "offspring": 2,
    "generations": 1,
}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A small network with seeded weights."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5))


def test_a_run_in_bfloat16_is_exact_and_repeats(network: nn.Module) -> None:
    """Budget, weights and masks."""
    result, again = (gaprune.prune(network, **RUN, steps=2, precision="bfloat16") for _ in range(2))
    total = sum(mask.numel() for mask in result.masks.values())
    assert result.kept == round(0.3 * total)
    assert result.settings["precision"] == "bfloat16"
    for name, mask in result.masks.items():
        assert torch.equal(mask, again.masks[name])
        assert torch.equal(result.state_dict()[name], network.state_dict()[name] * mask)


def test_a_resumed_run_has_the_same_precision_and_masks(network: nn.Module, tmp_path: Path) -> None:
    """Another precision is refused, because it gives other masks."""
    options = {**RUN, "precision": "bfloat16", "preset": "black-box", "observer": Observer()}
    whole = gaprune.prune(network, **{**options, "generations": 3})
    gaprune.prune(network, **options, out=tmp_path / "run")
    with pytest.raises(InputError, match=r"^precision: .*'bfloat16'.*'float32'"):
        gaprune.resume(tmp_path / "run", model=network, precision="float32")
    resumed = gaprune.resume(tmp_path / "run", model=network, generations=3)
    assert resumed.settings["precision"] == "bfloat16"
    assert all(torch.equal(mask, resumed.masks[name]) for name, mask in whole.masks.items())
    assert [r.best for r in resumed.history] == [r.best for r in whole.history]
    assert "precision" not in {*NEUTRAL, *CHANGEABLE}


def test_a_run_may_be_resumed_on_another_device(network: nn.Module, tmp_path: Path) -> None:
    """`auto` becomes the device used; a warning names a change."""
    warnings: list[str] = []
    observer = Observer()
    observer.warning = warnings.append  # type: ignore[method-assign, assignment]
    gaprune.prune(network, **RUN, steps=2, device="cpu", precision="auto", out=tmp_path / "run")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    resumed = gaprune.resume(tmp_path / "run", model=network, observer=observer, device="auto")
    assert (resumed.settings["device"], resumed.settings["precision"]) == (device, "float32")
    changes = [text for text in warnings if text.startswith("device: cuda")]
    assert len(changes) == (device == "cuda")
    with pytest.raises(InputError, match=r"^device: 'cpu'.*gpus_per_worker=0.5"):
        gaprune.resume(tmp_path / "run", model=network, gpus_per_worker=0.5, device="cpu")
    assert "device" in CHANGEABLE


@cuda
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_on_a_gpu(evaluator: Evaluator, precision: str) -> None:
    """Fitness and gradients are close, validation scores equal, budgets exact."""
    wide = move_evaluator(evaluator, "cuda")
    narrow = move_evaluator(replace(evaluator, precision=precision), "cuda")
    genes = random_genes(evaluator.layout, evaluator.layout.total // 2)
    mask = genes.decode(evaluator.layout)
    with deterministic("cuda"):
        assert narrow.fitness(mask) == pytest.approx(wide.fitness(mask), rel=0.05, abs=0.02)
        assert narrow.validate(mask) == wide.validate(mask)
        full, gradient = (
            e.score_gradient(mask, e.draw_batch(24, seeded())).cpu() for e in (wide, narrow)
        )
        assert functional.cosine_similarity(full, gradient, dim=0) > 0.98
        refined = refine(genes, narrow, Refinement(4, 1.0, 16), seeded())
    assert int(refined.decode(evaluator.layout).count_nonzero()) == genes.keep
