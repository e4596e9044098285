"""Repair puts means and spreads back on calibration inputs and leaves every weight as it was."""

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
    seeded,
    target_of,
)
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

CONVOLUTIONAL: dict[str, Callable[[], Target]] = {
    "1-D": lambda: target_of(lambda: Convolutional(1), (2, 9)),
    "2-D": lambda: target_of(lambda: Convolutional(2), (2, 6, 5)),
    "3-D": lambda: target_of(lambda: Convolutional(3), (2, 4, 3, 4)),
    "residual": lambda: target_of(Residual, (2, 6, 6)),
    "features": lambda: target_of(lambda: Perceptron(norm=True), (6,)),
}


def moments(values: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return mean and biased standard deviation along one axis, the plain way."""
    rows = values.movedim(axis, 0).flatten(1)
    centred = rows - rows.mean(1, keepdim=True)
    return rows.mean(1), centred.square().mean(1).sqrt()


def assert_same_moments(dense: dict[str, Tensor], repaired: dict[str, Tensor], axis: int) -> None:
    """Every channel of every named tensor has the dense mean and spread."""
    assert dense
    for name, values in dense.items():
        for wanted, got in zip(moments(values, axis), moments(repaired[name], axis), strict=True):
            assert torch.allclose(got, wanted, rtol=1e-9, atol=1e-9), name


def assert_same_ratios(dense: dict[str, Tensor], repaired: dict[str, Tensor], axis: int) -> None:
    """Every channel of every named tensor has the dense ratio of mean to spread."""
    assert dense
    for name, values in dense.items():
        (mean, spread), (found, found_spread) = (
            moments(tensor, axis) for tensor in (values, repaired[name])
        )
        assert torch.allclose(found / found_spread, mean / spread, rtol=1e-9, atol=1e-9), name


@pytest.mark.parametrize("case", CONVOLUTIONAL)
def test_every_batchnorm_has_the_dense_mean_and_spread_on_the_calibration(case: str) -> None:
    """The repaired network is measured from outside, after its masks are baked in."""
    target = CONVOLUTIONAL[case]()
    masks, calibration = random_masks(target), calibration_for(target)
    dense = outputs_of(target.model, calibration, _BatchNorm)
    pruned = outputs_of(target.masked_copy(masks), calibration, _BatchNorm)
    with pytest.raises(AssertionError):
        assert_same_moments(dense, pruned, 1)
    repaired = repaired_copy(target, masks, repair(target, masks, calibration))
    assert_same_moments(dense, outputs_of(repaired, calibration, _BatchNorm), 1)


def test_the_first_batchnorm_gets_what_the_formula_says() -> None:
    """Variance ← r²(variance + ε) − ε, mean ← μp − (μd − mean)·r, with r = σp/σd."""
    target = target_of(Convolutional, (2, 6, 5))
    masks, calibration = random_masks(target), calibration_for(target)
    weight, norm = target.weights["conv1.weight"], target.model.get_submodule("bn1")
    (mu_d, sigma_d), (mu_p, sigma_p) = (
        moments(nn.functional.conv2d(calibration, kernel, padding=1), 1)
        for kernel in (weight, weight * masks["conv1.weight"])
    )
    mean, var = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    ratio = sigma_p / sigma_d
    state = repair(target, masks, calibration).state
    assert torch.allclose(state["bn1.running_var"], ratio**2 * (var + 1e-5) - 1e-5, rtol=1e-12)
    assert torch.allclose(state["bn1.running_mean"], mu_p - (mu_d - mean) * ratio, rtol=1e-12)


@pytest.mark.parametrize("case", [*CONVOLUTIONAL, "perceptron", "encoder"])
def test_masks_that_keep_everything_change_nothing(case: str) -> None:
    """A dense network is repaired already, to the bit."""
    more = {
        "perceptron": lambda: target_of(Perceptron, (6,)),
        "encoder": lambda: target_of(Encoder, (5, 8)),
    }
    target = (CONVOLUTIONAL | more)[case]()
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in target.weights.items()}
    assert repair(target, masks, calibration_for(target)).changed == ()


@pytest.mark.parametrize("case", [*CONVOLUTIONAL, "encoder"])
def test_nothing_but_what_is_named_changes_a_bit(case: str) -> None:
    """All other parameters and buffers equal the masked copy's; the target is as it was."""
    make = CONVOLUTIONAL.get(case, lambda: target_of(Encoder, (5, 8)))
    target, untouched = make(), make()
    masks = random_masks(target)
    repaired = repair(target, masks, calibration_for(target))
    state = repaired_copy(target, masks, repaired).state_dict()
    plain = target.masked_copy(masks).state_dict()
    differing = {name for name, value in state.items() if not torch.equal(value, plain[name])}
    assert differing == set(repaired.changed) == set(repaired.state)
    assert differing.isdisjoint(target.weights)
    for name, value in untouched.model.state_dict().items():
        assert torch.equal(target.model.state_dict()[name], value)
    assert hook_count(target.model) == 0


def test_the_first_bias_gets_what_the_formula_says() -> None:
    """It moves by μd·σp/σd − μp: the mean shrinks as the spread does."""
    target = target_of(Perceptron, (6,))
    masks, calibration = random_masks(target), calibration_for(target)
    weight, bias = target.weights["fc1.weight"], target.model.get_parameter("fc1.bias")
    (mu_d, sigma_d), (mu_p, sigma_p) = (
        moments(calibration @ kernel.T + bias, 1)
        for kernel in (weight, weight * masks["fc1.weight"])
    )
    repaired = repair(target, masks, calibration)
    assert torch.allclose(repaired.state["fc1.bias"], bias + mu_d * sigma_p / sigma_d - mu_p)
    assert set(repaired.changed) == {"fc1.bias", "fc3.bias"}


def test_every_layer_with_a_bias_has_zero_at_its_dense_place() -> None:
    """The second layer's shift is measured behind the first one's."""
    target = target_of(lambda: Perceptron(middle_bias=True), (6,))
    masks, calibration = random_masks(target), calibration_for(target)
    repaired = repaired_copy(target, masks, repair(target, masks, calibration))
    dense = outputs_of(target.model, calibration, nn.Linear)
    assert_same_ratios(dense, outputs_of(repaired, calibration, nn.Linear), 1)


def test_a_narrowed_layer_keeps_its_place_above_the_threshold() -> None:
    """Where a mask quarters every output, repair quarters the bias: behind ReLU nothing dies."""
    target = target_of(lambda: nn.Sequential(nn.Linear(8, 1), nn.ReLU()), (8,))
    target.weights["0.weight"][:] = 1
    masks = {"0.weight": torch.tensor([[True] * 2 + [False] * 6])}
    calibration = calibration_for(target, 1).mean() + torch.randn(4, 1, generator=seeded()).expand(
        4, 8
    )
    target.model.get_parameter("0.bias").fill_(-8 * float(calibration.mean()) - 1)
    copy = repaired_copy(target, masks, repair(target, masks, calibration.double()))
    assert torch.allclose(copy(calibration.double()), target.model(calibration.double()) / 4)


def test_layer_norms_and_attention_are_matched_by_their_outputs() -> None:
    """Behind a transformer layer the norms have the dense moments, the layers the dense ratios."""
    target = target_of(Encoder, (5, 8))
    masks, calibration = random_masks(target), calibration_for(target)
    repaired = repair(target, masks, calibration)
    copy = repaired_copy(target, masks, repaired)
    for kinds, check in (
        ((nn.LayerNorm,), assert_same_moments),
        ((nn.MultiheadAttention, nn.Linear), assert_same_ratios),
    ):
        check(
            outputs_of(target.model, calibration, *kinds), outputs_of(copy, calibration, *kinds), -1
        )
    assert "layer.self_attn.out_proj.bias" in repaired.changed
    assert {"layer.norm1.weight", "layer.norm1.bias"} <= set(repaired.changed)


def test_group_norms_get_scale_and_shift() -> None:
    """Where no BatchNorm is, the affine part of a group norm takes the correction."""
    target = target_of(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, bias=False), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(36, 3)
        ),
        (2, 5, 5),
    )
    masks, calibration = random_masks(target), calibration_for(target)
    repaired = repair(target, masks, calibration)
    assert repaired.changed == ("1.weight", "1.bias", "3.bias")
    assert repaired.skipped == ()  # the norm stands in for the convolution's missing bias
    copy = repaired_copy(target, masks, repaired)
    dense = outputs_of(target.model, calibration, nn.GroupNorm)
    assert_same_moments(dense, outputs_of(copy, calibration, nn.GroupNorm), 1)


@pytest.mark.parametrize("channel", ["dead-in-dense", "dead-in-pruned", "dead-in-both"])
def test_channels_that_do_not_move_keep_their_scale(channel: str) -> None:
    """A spread of zero on either side gives no quotient: only the mean is put right."""
    target = target_of(Convolutional, (2, 6, 5))
    masks, calibration = random_masks(target), calibration_for(target)
    if channel != "dead-in-pruned":
        target.weights["conv1.weight"][0] = 0
    if channel != "dead-in-dense":
        masks["conv1.weight"][0] = False
    else:
        target.model.get_parameter("conv1.weight")[0, 0, 1, 1] = 1e-9
        masks["conv1.weight"][0] = True
    repaired = repair(target, masks, calibration)
    before = target.model.get_buffer("bn1.running_var")
    after = repaired.state["bn1.running_var"]
    assert after[0] == before[0]
    assert not torch.equal(after[1:], before[1:])
    copy = repaired_copy(target, masks, repaired)
    for model_output in (copy(calibration), outputs_of(copy, calibration, _BatchNorm)["bn1"]):
        assert model_output.isfinite().all()
    dense, found = (outputs_of(m, calibration, _BatchNorm)["bn1"] for m in (target.model, copy))
    assert torch.allclose(found.mean((0, 2, 3)), dense.mean((0, 2, 3)))


def test_the_running_variance_never_falls_below_zero() -> None:
    """A channel that pruning leaves a thousandth of its spread is amplified up to √ε, no more."""
    target = target_of(Convolutional, (2, 6, 5))
    norm = target.model.get_submodule("bn1")
    norm.get_buffer("running_var").fill_(1e-4)
    masks, calibration = random_masks(target, density=1), calibration_for(target)
    weight = target.weights["conv1.weight"]
    weight[0, 0, 0, 0] = 3e-3 * weight[0].abs().max()
    masks["conv1.weight"][0] = False
    masks["conv1.weight"][0, 0, 0, 0] = True
    repaired = repair(target, masks, calibration)
    assert repaired.state["bn1.running_var"][0] == 0
    copy = repaired_copy(target, masks, repaired)
    dense, found = (
        outputs_of(m, calibration, _BatchNorm)["bn1"][:, 0] for m in (target.model, copy)
    )
    assert torch.allclose(found.mean(), dense.mean())
    assert found.std() < dense.std()


def test_the_network_gets_nearer_to_the_dense_one_on_other_inputs() -> None:
    """What repair learns from one set of calibration inputs serves for another."""
    target = target_of(Residual, (2, 6, 6))
    masks = random_masks(target, density=0.5)
    copy = repaired_copy(target, masks, repair(target, masks, calibration_for(target, 256)))
    fresh = calibration_for(target, 256, seed=50)
    wanted = target.model(fresh)
    before = (target.masked_copy(masks)(fresh) - wanted).square().mean()
    assert (copy(fresh) - wanted).square().mean() < 0.5 * before


def test_half_precision_keeps_its_dtype() -> None:
    """Statistics are measured in float32 and written as the network stores them."""
    model = target_of(Residual, (2, 6, 6), double=False).model.to(torch.bfloat16)
    target = target_of(lambda: model, (2, 6, 6), double=False)
    masks, calibration = random_masks(target), calibration_for(target, 64)
    repaired = repair(target, masks, calibration)
    assert {value.dtype for value in repaired.state.values()} == {torch.bfloat16}
    dense = outputs_of(target.model, calibration, _BatchNorm)
    copy = repaired_copy(target, masks, repaired)
    for name, found in outputs_of(copy, calibration, _BatchNorm).items():
        for got, wanted in zip(
            moments(found.float(), 1), moments(dense[name].float(), 1), strict=True
        ):
            assert torch.allclose(got, wanted, atol=0.05)


def test_a_network_that_is_one_norm_is_repaired_too() -> None:
    """The root has no name; leaves are then named alone."""
    target = target_of(lambda: nn.BatchNorm1d(4), (4,), "weight")
    masks = {"weight": torch.tensor([True, False, True, True])}
    assert repair(target, masks, calibration_for(target)).changed == ()  # its input is not pruned


def test_masks_of_some_layers_leave_the_others_dense() -> None:
    """A mask that is missing keeps its layer whole."""
    target = target_of(Convolutional, (2, 6, 5))
    masks, calibration = random_masks(target), calibration_for(target)
    repaired = repair(target, {"conv2.weight": masks["conv2.weight"]}, calibration)
    assert repaired.changed == ("bn2.running_mean", "bn2.running_var")


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"conv9.weight": torch.ones(1, dtype=torch.bool)}, "did you mean 'conv2.weight'"),
        ({"head.weight": torch.ones(3, 5)}, r"masks\['head.weight'\]: .*bool"),
        ({"head.weight": torch.ones(5, 3, dtype=torch.bool)}, r"\(3, 5\)"),
    ],
)
def test_masks_that_do_not_fit_are_named(masks: dict[str, Tensor], message: str) -> None:
    """The message says which mask and what it should be."""
    target = target_of(Convolutional, (2, 6, 5))
    with pytest.raises(InputError, match=message):
        repair(target, masks, calibration_for(target))


def test_missing_calibration_inputs_are_refused() -> None:
    """Repair needs at least one input."""
    target = target_of(Convolutional, (2, 6, 5))
    masks, calibration = random_masks(target), calibration_for(target)
    with pytest.raises(InputError, match="^calibration: "):
        repair(target, masks, calibration[:0])


def test_an_overflowing_network_is_a_failure_that_names_the_module() -> None:
    """Infinite statistics are never written."""
    target = target_of(Convolutional, (2, 6, 5), double=False)
    calibration = calibration_for(target) * 1e30
    with pytest.raises(GapruneError, match="^repair: .*bn1"):
        repair(target, random_masks(target), calibration)
    assert hook_count(target.model) == 0


def test_one_calibration_is_enough_to_shift() -> None:
    """One vector has no spread: the means are matched and the scales stay."""
    target = target_of(lambda: Perceptron(norm=True), (6,))
    masks, calibration = (
        random_masks(target),
        calibration_for(target, 1, seed=int(seeded().initial_seed())),
    )
    repaired = repair(target, masks, calibration)
    assert repaired.changed == ("norm.running_mean",)
    copy = repaired_copy(target, masks, repaired)
    dense, found = (outputs_of(m, calibration, _BatchNorm)["norm"] for m in (target.model, copy))
    assert torch.allclose(found, dense)


def test_a_pruned_mobile_network_reads_digits_again() -> None:
    """Procedural calibration inputs repair the zoo's BatchNorm network on test images that it never sees."""
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
