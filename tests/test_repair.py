"""Repair restores means and spreads on calibration inputs and changes no weight."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from repair_networks import (
    Convolutional,
    Encoder,
    Perceptron,
    Residual,
    calibration_for,
    hook_count,
    outputs_of,
    random_masks,
    target_of,
)
from search_cases import seeded
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gaprune.calibration.generators.procedural import procedural
from gaprune.calibration.generators.random_draws import to_network
from gaprune.errors import GapruneError, InputError
from gaprune.masks.budget import keep_total
from gaprune.masks.supermask import global_mask
from gaprune.models.target import Target, load_target
from gaprune.models.zoo import mnist
from gaprune.repair import repair, repaired_copy


def convolutional() -> Target:
    """Return a target of two convolutions with BatchNorm."""
    return target_of(Convolutional, (2, 6, 5))


def group_norm() -> nn.Module:
    """Return a network whose convolution has no bias; the group norm corrects it."""
    conv = nn.Conv2d(2, 4, 3, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(36, 3))


BATCH_NORMS: dict[str, Callable[[], Target]] = {
    "1-D": lambda: target_of(lambda: Convolutional(1), (2, 9)),
    "2-D": convolutional,
    "3-D": lambda: target_of(lambda: Convolutional(3), (2, 4, 3, 4)),
    "residual": lambda: target_of(Residual, (2, 6, 6)),
    "vectors": lambda: target_of(lambda: Perceptron(norm=True), (6,)),
}
WITHOUT_BATCH_NORM: dict[str, Callable[[], Target]] = {
    "perceptron": lambda: target_of(lambda: Perceptron(middle_bias=True), (6,)),
    "encoder": lambda: target_of(Encoder, (5, 8)),
    "group norm": lambda: target_of(group_norm, (2, 5, 5)),
}
TARGETS = {**BATCH_NORMS, **WITHOUT_BATCH_NORM}


def statistics(values: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return mean and biased standard deviation along one axis."""
    rows = values.movedim(axis, 0).flatten(1)
    centred = rows - rows.mean(1, keepdim=True)
    return rows.mean(1), centred.square().mean(1).sqrt()


def assert_same_statistics(
    dense: dict[str, Tensor], repaired: dict[str, Tensor], axis: int
) -> None:
    """Check that every channel has the dense mean and spread."""
    assert dense
    for name, values in dense.items():
        pairs = zip(statistics(values, axis), statistics(repaired[name], axis), strict=True)
        assert all(torch.allclose(y, x, rtol=1e-9, atol=1e-9) for x, y in pairs), name


def assert_same_ratios(dense: dict[str, Tensor], repaired: dict[str, Tensor], axis: int) -> None:
    """Check that every channel has the dense ratio of mean to spread."""
    assert dense
    for name, values in dense.items():
        (mean, std), (new_mean, new_std) = (
            statistics(tensor, axis) for tensor in (values, repaired[name])
        )
        assert torch.allclose(new_mean / new_std, mean / std, rtol=1e-9, atol=1e-9), name


MATCHED = [
    *((name, _BatchNorm, assert_same_statistics, 1) for name in BATCH_NORMS),
    ("perceptron", nn.Linear, assert_same_ratios, 1),
    ("encoder", nn.LayerNorm, assert_same_statistics, -1),
    ("encoder", nn.Linear, assert_same_ratios, -1),
    ("encoder", nn.MultiheadAttention, assert_same_ratios, -1),
    ("group norm", nn.GroupNorm, assert_same_statistics, 1),
]


@pytest.mark.parametrize(("name", "kind", "check", "axis"), MATCHED)
def test_repaired_outputs_have_the_dense_statistics_on_the_calibration_inputs(
    name: str, kind: type[nn.Module], check: Callable[..., None], axis: int
) -> None:
    """Norms have the dense mean and spread, layers with biases the dense ratio of both."""
    target = TARGETS[name]()
    masks, inputs = random_masks(target), calibration_for(target)
    dense = outputs_of(target.model, inputs, kind)
    with pytest.raises(AssertionError):
        check(dense, outputs_of(target.masked_copy(masks), inputs, kind), axis)
    repaired = repair(target, masks, inputs)
    check(dense, outputs_of(repaired_copy(target, masks, repaired), inputs, kind), axis)
    assert repaired.skipped == ()


def test_the_first_batchnorm_follows_the_equation() -> None:
    """Variance ← r²(variance + ε) − ε, mean ← μp − (μd − mean)·r, with r = σp/σd."""
    target = convolutional()
    masks, inputs = random_masks(target), calibration_for(target)
    weight, norm = target.weights["conv1.weight"], target.model.get_submodule("bn1")
    (mu_d, sigma_d), (mu_p, sigma_p) = (
        statistics(nn.functional.conv2d(inputs, kernel, padding=1), 1)
        for kernel in (weight, weight * masks["conv1.weight"])
    )
    mean, var = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    ratio = sigma_p / sigma_d
    state = repair(target, masks, inputs).state
    assert torch.allclose(state["bn1.running_var"], ratio**2 * (var + 1e-5) - 1e-5, rtol=1e-12)
    assert torch.allclose(state["bn1.running_mean"], mu_p - (mu_d - mean) * ratio, rtol=1e-12)


def test_the_first_bias_follows_the_equation() -> None:
    """It changes by μd·σp/σd − μp."""
    target = target_of(Perceptron, (6,))
    masks, inputs = random_masks(target), calibration_for(target)
    weight, bias = target.weights["fc1.weight"], target.model.get_parameter("fc1.bias")
    (mu_d, sigma_d), (mu_p, sigma_p) = (
        statistics(inputs @ kernel.T + bias, 1) for kernel in (weight, weight * masks["fc1.weight"])
    )
    repaired = repair(target, masks, inputs)
    assert torch.allclose(repaired.state["fc1.bias"], bias + mu_d * sigma_p / sigma_d - mu_p)
    assert set(repaired.changed) == {"fc1.bias", "fc3.bias"}


@pytest.mark.parametrize("name", TARGETS)
def test_only_reported_parameters_and_buffers_change_a_bit(name: str) -> None:
    """No prunable weight, nothing in the dense network, and nothing at all under full masks."""
    target, untouched = TARGETS[name](), TARGETS[name]()
    masks, inputs = random_masks(target), calibration_for(target)
    repaired = repair(target, masks, inputs)
    state = repaired_copy(target, masks, repaired).state_dict()
    plain = target.masked_copy(masks).state_dict()
    differing = {leaf for leaf, value in state.items() if not torch.equal(value, plain[leaf])}
    assert differing == set(repaired.changed) == set(repaired.state)
    assert differing.isdisjoint(target.weights)
    for leaf, value in untouched.model.state_dict().items():
        assert torch.equal(target.model.state_dict()[leaf], value)
    assert hook_count(target.model) == 0
    full = {leaf: torch.ones_like(w, dtype=torch.bool) for leaf, w in target.weights.items()}
    assert repair(target, full, inputs).changed == ()


@pytest.mark.parametrize("dead", ["dense", "pruned", "both"])
def test_channels_without_spread_keep_their_scale(dead: str) -> None:
    """Only their mean is corrected."""
    target = convolutional()
    masks, inputs = random_masks(target), calibration_for(target)
    if dead != "pruned":
        target.weights["conv1.weight"][0] = 0
    if dead == "dense":
        target.model.get_parameter("conv1.weight")[0, 0, 1, 1] = 1e-9
    masks["conv1.weight"][0] = dead == "dense"
    repaired = repair(target, masks, inputs)
    before = target.model.get_buffer("bn1.running_var")
    after = repaired.state["bn1.running_var"]
    assert after[0] == before[0]
    assert not torch.equal(after[1:], before[1:])
    model = repaired_copy(target, masks, repaired)
    dense, pruned = (outputs_of(m, inputs, _BatchNorm)["bn1"] for m in (target.model, model))
    assert model(inputs).isfinite().all()
    assert torch.allclose(pruned.mean((0, 2, 3)), dense.mean((0, 2, 3)))


def test_the_running_variance_never_falls_below_zero() -> None:
    """A channel with a thousandth of its spread is amplified up to √ε, no more."""
    target = convolutional()
    target.model.get_buffer("bn1.running_var").fill_(1e-4)
    masks, inputs = random_masks(target, density=1), calibration_for(target)
    weight = target.weights["conv1.weight"]
    weight[0, 0, 0, 0] = 3e-3 * weight[0].abs().max()
    masks["conv1.weight"][0] = False
    masks["conv1.weight"][0, 0, 0, 0] = True
    repaired = repair(target, masks, inputs)
    assert repaired.state["bn1.running_var"][0] == 0
    model = repaired_copy(target, masks, repaired)
    dense, pruned = (outputs_of(m, inputs, _BatchNorm)["bn1"][:, 0] for m in (target.model, model))
    assert torch.allclose(pruned.mean(), dense.mean())
    assert pruned.std() < dense.std()


def test_half_precision_keeps_its_dtype() -> None:
    """Statistics are measured in float32 and stored as the network stores them."""
    half = target_of(Residual, (2, 6, 6), double=False).model.to(torch.bfloat16)
    target = target_of(lambda: half, (2, 6, 6), double=False)
    masks, inputs = random_masks(target), calibration_for(target, 64)
    repaired = repair(target, masks, inputs)
    assert {value.dtype for value in repaired.state.values()} == {torch.bfloat16}
    dense = outputs_of(target.model, inputs, _BatchNorm)
    outputs = outputs_of(repaired_copy(target, masks, repaired), inputs, _BatchNorm)
    for name, values in outputs.items():
        pairs = zip(statistics(values.float(), 1), statistics(dense[name].float(), 1), strict=True)
        assert all(torch.allclose(x, y, atol=0.05) for x, y in pairs)


def test_only_layers_after_a_mask_are_corrected() -> None:
    """A layer without a mask stays dense; a norm whose input is not pruned needs no repair."""
    target = convolutional()
    masks = {"conv2.weight": random_masks(target)["conv2.weight"]}
    changed = repair(target, masks, calibration_for(target)).changed
    assert changed == ("bn2.running_mean", "bn2.running_var")
    norm = target_of(lambda: nn.BatchNorm1d(4), (4,), "weight")
    masks = {"weight": torch.tensor([True, False, True, True])}
    assert repair(norm, masks, calibration_for(norm)).changed == ()


@pytest.mark.parametrize(
    ("masks", "count", "message"),
    [
        ({"conv9.weight": torch.ones(1, dtype=torch.bool)}, 24, "'conv2.weight'"),
        ({"head.weight": torch.ones(3, 5)}, 24, r"masks\['head.weight'\]: .*bool"),
        ({"head.weight": torch.ones(5, 3, dtype=torch.bool)}, 24, r"\(3, 5\)"),
        ({}, 0, "^calibration: "),
    ],
)
def test_wrong_masks_and_missing_inputs_are_refused(
    masks: dict[str, Tensor], count: int, message: str
) -> None:
    """The error names the mask."""
    target = convolutional()
    with pytest.raises(InputError, match=message):
        repair(target, masks, calibration_for(target)[:count])


def test_infinite_statistics_are_an_error_that_names_the_module() -> None:
    """They are never written."""
    target = target_of(Convolutional, (2, 6, 5), double=False)
    with pytest.raises(GapruneError, match=r"^repair: .*bn1"):
        repair(target, random_masks(target), calibration_for(target) * 1e30)
    assert hook_count(target.model) == 0


def test_a_single_vector_corrects_means_only() -> None:
    """It has no spread."""
    target = target_of(lambda: Perceptron(norm=True), (6,))
    masks, inputs = random_masks(target), calibration_for(target, 1)
    repaired = repair(target, masks, inputs)
    assert repaired.changed == ("norm.running_mean",)
    model = repaired_copy(target, masks, repaired)
    dense, pruned = (outputs_of(m, inputs, _BatchNorm)["norm"] for m in (target.model, model))
    assert torch.allclose(pruned, dense)


def test_procedural_inputs_repair_a_pruned_zoo_network() -> None:
    """Its accuracy on test images rises."""
    target = load_target("mobile-student")
    scores = target.layout.flatten(target.weights).abs()
    keep = keep_total(target.layout, 0.8)
    masks = target.layout.split(global_mask(scores, target.layout, keep))
    unit = procedural(target.inputs, 128, seeded(1))
    repaired = repair(target, masks, to_network(target.inputs, unit))
    test = mnist.test_set()

    def accuracy(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(test.images[:500]).argmax(1) == test.labels[:500]).float().mean())

    assert accuracy(target.masked_copy(masks)) < 0.2
    assert accuracy(repaired_copy(target, masks, repaired)) > 0.6
