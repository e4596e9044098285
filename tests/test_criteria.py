"""Rules of all criteria, and criteria without inputs against independent oracles."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from criterion_networks import (
    CASES,
    IMAGE,
    SMALL_IMAGE,
    VECTOR,
    Routes,
    convolutional,
    network_of,
    seeded,
    tiny,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

from gaprune.criteria import CRITERIA, score
from gaprune.criteria.weights_only import erk_factor, lamp_scores
from gaprune.errors import GapruneError, InputError
from gaprune.masks.supermask import global_mask, layer_counts, layered_mask, top_k_mask
from gaprune.models.zoo.networks import LeNet

WITH_INPUTS = [name for name, criterion in CRITERIA.items() if criterion.needs_inputs]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_on_every_architecture(name: str, case: str) -> None:
    """Scores are finite, informative and repeatable, and the dense model stays as it was."""
    network, calibration = CASES[case][0](), CASES[case][1]()
    before = {key: tensor.clone() for key, tensor in network.model.state_dict().items()}
    inputs = calibration.clone()
    scores = score(name, network, calibration, seeded(3), density=0.2)
    assert scores.shape == (network.layout.total,)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    layers = network.layout.split(scores).values()
    assert all(len(set(layer.flatten().tolist())) > 1 for layer in layers if layer.ndim > 1)
    assert torch.equal(scores, score(name, network, calibration, seeded(3), density=0.2))
    assert torch.equal(calibration, inputs)
    assert all(torch.equal(before[key], value) for key, value in network.model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in network.model.parameters())
    assert not network.model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.model.modules())


@pytest.mark.parametrize("name", CRITERIA)
def test_layers_that_no_calibration_input_reaches_are_scored(name: str) -> None:
    """Forward may choose layers by its inputs, or never use one."""
    network = network_of(Routes, VECTOR)
    scores = score(name, network, torch.rand(40, 4, generator=seeded()), seeded(3), density=0.2)
    assert scores.isfinite().all()


def test_magnitude_gives_the_masks_of_torch_prune() -> None:
    """The best weights of the network, or of each layer, are those of torch's L1 pruning."""
    layout = network_of(LeNet, IMAGE).layout
    scores = score("magnitude", network_of(LeNet, IMAGE), None, seeded())
    keep, counts = layout.total // 5, [size // 3 for size in layout.sizes]

    def torch_mask(prune_layers: Callable[[list[nn.Module]], object]) -> Tensor:
        model = network_of(LeNet, IMAGE).model
        layers = [model.get_submodule(name.removesuffix(".weight")) for name in layout.names]
        prune_layers(layers)
        return torch.cat([layer.get_buffer("weight_mask").flatten() for layer in layers]).bool()

    def prune_globally(layers: list[nn.Module]) -> None:
        pairs = [(layer, "weight") for layer in layers]
        prune.global_unstructured(pairs, prune.L1Unstructured, amount=layout.total - keep)

    def prune_by_layer(layers: list[nn.Module]) -> None:
        for layer, size, count in zip(layers, layout.sizes, counts, strict=True):
            prune.l1_unstructured(layer, "weight", amount=size - count)

    assert torch.equal(global_mask(scores, layout, keep), torch_mask(prune_globally))
    assert torch.equal(layered_mask(scores, layout, counts), torch_mask(prune_by_layer))


def test_random_is_uniform_and_follows_its_generator() -> None:
    """Another seed gives other scores; all lie in [0, 1) with the mean and spread of a uniform."""
    network = network_of(LeNet, IMAGE)
    scores = score("random", network, None, seeded(1))
    assert not torch.equal(scores, score("random", network, None, seeded(2)))
    assert 0 <= float(scores.min()) < float(scores.max()) < 1
    assert abs(float(scores.mean()) - 1 / 2) < 0.01
    assert abs(float(scores.var()) - 1 / 12) < 0.005


@settings(deadline=None)
@given(st.lists(st.integers(-6, 6), min_size=1, max_size=30))
def test_lamp_is_its_definition(values: list[int]) -> None:
    """w² over the sum of squares of weights at least as large; the earlier of two equals wins."""
    expected = []
    for i, w in enumerate(values):
        larger = [v * v for j, v in enumerate(values) if (abs(v), -j) >= (abs(w), -i)]
        expected.append(w * w / sum(larger) if w else 0.0)
    scores = lamp_scores(torch.tensor(values, dtype=torch.float32))
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64))


@settings(deadline=None, max_examples=25)
@given(st.floats(0.001, 0.999))
def test_erk_keeps_its_closed_form_densities_at_any_budget(density: float) -> None:
    """Layer l keeps min(1, ε·r_l) of its weights, the largest ones, for the ε that fits."""
    network = network_of(convolutional, SMALL_IMAGE, vectors=True)
    layout = network.layout
    keep = max(1, round(layout.total * density))
    scores = score("erk", network, None, seeded())
    counts = layer_counts(top_k_mask(scores, keep), layout)
    factors = map(erk_factor, layout.shapes)
    sizes = list(zip(counts, layout.sizes, factors, strict=True))
    low = max(n / size / factor for n, size, factor in sizes)
    high = min((n + 1) / size / factor for n, size, factor in sizes if n < size)
    assert low <= high * (1 + 1e-6)  # an ε between them rounds down to all the counts at once
    magnitude = score("magnitude", network, None, seeded())
    best = layered_mask(magnitude, layout, counts)
    assert torch.equal(top_k_mask(scores, keep), best)


def test_erk_factors() -> None:
    """Sum over product of all dimensions, kernel included; 1 for vectors and scalars."""
    assert erk_factor((300, 784)) == pytest.approx((300 + 784) / (300 * 784))
    assert erk_factor((64, 32, 3, 3)) == pytest.approx((64 + 32 + 3 + 3) / (64 * 32 * 9))
    assert erk_factor((16, 1, 3, 3)) == pytest.approx((16 + 1 + 3 + 3) / (16 * 9))
    assert erk_factor((10,)) == erk_factor(()) == 1


def bias_free() -> nn.Module:
    """Build a convolution, pooling and two linear layers without biases."""
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, bias=False),
        nn.BatchNorm2d(3, affine=False),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(108, 12, bias=False),
        nn.ReLU(),
        nn.Linear(12, 5, bias=False),
    )


def naive_synflow(model: nn.Module, density: float) -> tuple[list[Tensor], Tensor]:
    """Run algorithm 1 literally and change the model: return all flat masks and the last flow."""
    model.double()
    for tensor in model.state_dict().values():
        tensor.abs_()
    weights = [p for p in model.parameters() if p.ndim > 1]  # biases take part, unpruned
    dense = [p.clone() for p in weights]
    total = sum(p.numel() for p in weights)
    masks = [torch.ones(total, dtype=torch.bool)]
    for k in range(1, 101):
        start = 0
        for p, full in zip(weights, dense, strict=True):
            p.data = full * masks[-1][start : start + p.numel()].view_as(full)
            p.requires_grad_().grad = None
            start += p.numel()
        model(torch.ones(1, *SMALL_IMAGE.shape, dtype=torch.float64)).sum().backward()
        flow = torch.cat([(p.grad * p.detach()).flatten() for p in weights if p.grad is not None])
        best = flow.argsort(descending=True, stable=True)[: round(total * density ** (k / 100))]
        masks.append(torch.zeros(total, dtype=torch.bool).index_fill_(0, best, value=True))
    return masks, flow


@pytest.mark.parametrize("density", [0.3, 0.02])
def test_synflow_is_algorithm_1(density: float) -> None:
    """The best scores give the masks of a literal algorithm 1 after 100 and 50 rounds; no ties."""
    network = network_of(convolutional, SMALL_IMAGE)
    scores = score("synflow", network, None, seeded(), density)
    masks, flow = naive_synflow(network_of(convolutional, SMALL_IMAGE).model, density)
    for mask in (masks[100], masks[50]):
        assert torch.equal(top_k_mask(scores, int(mask.count_nonzero())), mask)
    last = masks[99]  # weights of the last round are ordered by their flow
    assert bool((flow[last][scores[last].argsort()].diff() >= 0).all())
    assert len(set(scores.tolist())) == network.layout.total


def test_synflow_refuses_a_flow_beyond_float64() -> None:
    """Ranks are always finite, so the flow itself is checked."""
    network = network_of(bias_free, IMAGE, torch.float64)
    for weight in network.weights.values():
        weight.mul_(1e200)
    with pytest.raises(GapruneError, match=r"synflow.*overflows"):
        score("synflow", network, None, seeded())


@pytest.mark.parametrize("name", WITH_INPUTS)
@pytest.mark.parametrize("calibration", [None, torch.zeros(0, 4)])
def test_missing_calibration_inputs_are_refused(name: str, calibration: Tensor | None) -> None:
    """A criterion that runs the network needs at least one calibration input."""
    with pytest.raises(InputError, match=f"calibration: .*'{name}'"):
        score(name, tiny(), calibration, seeded())


def test_an_unknown_name_lists_the_valid_ones() -> None:
    """The nearest name is suggested."""
    with pytest.raises(InputError, match=r"'magnitude'.*erk, grasp, lamp"):
        score("magnitud", tiny(), None, seeded())


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, math.nan])
def test_a_density_outside_its_range_is_refused(density: float) -> None:
    """The fraction of weights that stay lies in (0, 1]."""
    with pytest.raises(InputError, match=f"density: .*{density}"):
        score("synflow", tiny(), None, seeded(), density)


@pytest.mark.parametrize("name", WITH_INPUTS)
def test_scores_that_are_not_finite_are_refused(name: str) -> None:
    """If the network overflows on its calibration inputs, the error names the layer."""
    network = network_of(lambda: nn.Linear(4, 3), VECTOR)
    with pytest.raises(GapruneError, match=f"'{name}': .*'weight'"):
        score(name, network, torch.full((2, 4), torch.inf), seeded())
