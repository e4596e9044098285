"""Criteria that need no inputs against independent oracles, and what all criteria promise."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from criterion_networks import CASES, IMAGE, VECTOR, network_of, seeded, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import prune

from gaprune.criteria import CRITERIA, DenseNetwork, score
from gaprune.criteria.flow import absolute_state, synaptic_flow
from gaprune.criteria.weights_only import erk_factor, lamp_scores
from gaprune.errors import GapruneError, InputError
from gaprune.masks.supermask import global_mask, layer_counts, layered_mask, top_k_mask
from gaprune.models.zoo.networks import LeNet

PROBED = [name for name, criterion in CRITERIA.items() if criterion.needs_inputs]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_on_every_architecture(name: str, case: str) -> None:
    """Scores are finite, informative and repeatable, and the dense model stays as it was."""
    network, calibration = CASES[case][0](), CASES[case][1]()
    before = {key: tensor.clone() for key, tensor in network.model.state_dict().items()}
    kept = calibration.clone()

    scores = score(name, network, calibration, seeded(3), density=0.2)

    assert scores.shape == (network.layout.total,)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    layers = network.layout.split(scores).values()
    assert all(len(set(layer.flatten().tolist())) > 1 for layer in layers if layer.ndim > 1)
    assert torch.equal(scores, score(name, network, calibration, seeded(3), density=0.2))
    assert torch.equal(calibration, kept)
    assert all(torch.equal(before[key], now) for key, now in network.model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in network.model.parameters())
    assert not network.model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.model.modules())


def pruned_by_torch(network: DenseNetwork, prune_all: Callable[[list[nn.Module]], None]) -> Tensor:
    """Return the flat mask that `torch.nn.utils.prune` leaves on the weights of a network."""
    owners = [network.model.get_submodule(name.rpartition(".")[0]) for name in network.weights]
    prune_all(owners)
    return torch.cat([owner.get_buffer("weight_mask").flatten() for owner in owners]).bool()


def test_magnitude_gives_the_global_mask_of_torch_prune() -> None:
    """The best k of the whole network are what torch's global L1 pruning keeps."""
    network = CASES["lenet"][0]()
    scores, keep = score("magnitude", network, None, seeded()), network.layout.total // 5

    def theirs(owners: list[nn.Module]) -> None:
        pairs = [(owner, "weight") for owner in owners]
        amount = network.layout.total - keep
        prune.global_unstructured(pairs, prune.L1Unstructured, amount=amount)

    mask = pruned_by_torch(CASES["lenet"][0](), theirs)
    assert torch.equal(global_mask(scores, network.layout, keep), mask)


def test_magnitude_gives_the_layer_masks_of_torch_prune() -> None:
    """The best third of every layer are what torch's layer-wise L1 pruning keeps."""
    network = CASES["lenet"][0]()
    scores = score("magnitude", network, None, seeded())
    counts = [size // 3 for size in network.layout.sizes]

    def theirs(owners: list[nn.Module]) -> None:
        for owner, size, count in zip(owners, network.layout.sizes, counts, strict=True):
            prune.l1_unstructured(owner, "weight", amount=size - count)

    mask = pruned_by_torch(CASES["lenet"][0](), theirs)
    assert torch.equal(layered_mask(scores, network.layout, counts), mask)


def test_random_is_uniform_and_follows_its_generator() -> None:
    """Another seed gives other scores; all lie in [0, 1) with the mean and spread of a uniform."""
    network = CASES["lenet"][0]()
    scores = score("random", network, None, seeded(1))
    assert not torch.equal(scores, score("random", network, None, seeded(2)))
    assert 0 <= float(scores.min()) < float(scores.max()) < 1
    assert abs(float(scores.mean()) - 1 / 2) < 0.01
    assert abs(float(scores.var()) - 1 / 12) < 0.005


@settings(deadline=None)
@given(st.lists(st.integers(-6, 6), min_size=1, max_size=30))
def test_lamp_is_its_definition(values: list[int]) -> None:
    """w² over the sum of squares of the weights at least as large; of equals the earlier leads."""
    expected = []
    for i, w in enumerate(values):
        larger = [v * v for j, v in enumerate(values) if (abs(v), -j) >= (abs(w), -i)]
        expected.append(w * w / sum(larger) if w else 0.0)
    scores = lamp_scores(torch.tensor(values, dtype=torch.float32))
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64))


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=30), st.integers(-20, 20))
def test_lamp_ignores_the_scale_of_a_layer(values: list[float], exponent: int) -> None:
    """Multiplying a layer by a power of two changes no bit of its scores."""
    weight = torch.tensor(values, dtype=torch.float64)
    weight[weight.abs() < 1e-6] = 0
    assert torch.equal(lamp_scores(weight), lamp_scores(weight * 2.0**exponent))


@settings(deadline=None)
@given(st.data(), st.lists(st.integers(1, 1000), min_size=2, max_size=30, unique=True))
def test_lamp_moves_with_the_weights(data: st.DataObject, values: list[int]) -> None:
    """Permuting distinct weights permutes their scores, whatever their shape."""
    order = data.draw(st.permutations(range(len(values))))
    weight = torch.tensor(values, dtype=torch.float64)
    scores = lamp_scores(weight[order].view(1, -1)).flatten()
    assert torch.equal(scores, lamp_scores(weight)[order])


@settings(deadline=None, max_examples=25)
@given(st.floats(0.001, 0.999))
def test_erk_keeps_its_closed_form_densities_at_any_budget(density: float) -> None:
    """Layer l keeps min(1, ε·r_l) of its weights, the largest ones, for the ε that fits."""
    network = network_of(LeNet, IMAGE, vectors=True)
    layout = network.layout
    keep = max(1, round(layout.total * density))
    scores = score("erk", network, None, seeded())
    counts = layer_counts(top_k_mask(scores, keep), layout)
    sizes = [
        (n, size, erk_factor(s))
        for n, size, s in zip(counts, layout.sizes, layout.shapes, strict=True)
    ]
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


def test_synaptic_flow_is_conserved() -> None:
    """Every layer's scores add up to the network's whole flow (Tanaka et al. 2020, theorem 2)."""
    network = network_of(bias_free, IMAGE)
    ones = torch.ones(1, 1, 28, 28, dtype=torch.float64)
    state = absolute_state(network.model)
    whole = functional_call(network.model, state, (ones,)).sum()
    flow = synaptic_flow(network, state, network.flat.double().abs(), ones)
    for layer in network.layout.split(flow).values():
        torch.testing.assert_close(layer.sum(), whole)


def naive_synflow(model: nn.Module, density: float) -> tuple[list[Tensor], Tensor]:
    """Algorithm 1 by the letter on a model that it may spoil: all flat masks, the last flow."""
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
        model(torch.ones(1, 1, 28, 28, dtype=torch.float64)).sum().backward()
        flow = torch.cat([(p.grad * p.detach()).flatten() for p in weights if p.grad is not None])
        best = flow.argsort(descending=True, stable=True)[: round(total * density ** (k / 100))]
        masks.append(torch.zeros(total, dtype=torch.bool).index_fill_(0, best, value=True))
    return masks, flow


@pytest.mark.parametrize("density", [0.3, 0.02])
def test_synflow_is_algorithm_1(density: float) -> None:
    """The best scores are the mask of naive rounds, after 100 and after 50; no two are equal."""
    network = network_of(LeNet, IMAGE)
    scores = score("synflow", network, None, seeded(), density)
    masks, flow = naive_synflow(network_of(LeNet, IMAGE).model, density)
    for mask in (masks[100], masks[50]):
        assert torch.equal(top_k_mask(scores, int(mask.count_nonzero())), mask)
    last = masks[99]  # those of the last round, survivors or not, stand in the order of their flow
    assert bool((flow[last][scores[last].argsort()].diff() >= 0).all())
    assert len(set(scores.tolist())) == network.layout.total


def test_synflow_refuses_a_flow_beyond_float64() -> None:
    """Ranks are always finite, so the flow itself is checked."""
    network = network_of(bias_free, IMAGE, torch.float64)
    for weight in network.weights.values():
        weight.mul_(1e200)
    with pytest.raises(GapruneError, match=r"synflow.*overflows"):
        score("synflow", network, None, seeded())


@pytest.mark.parametrize("name", PROBED)
@pytest.mark.parametrize("calibration", [None, torch.zeros(0, 4)])
def test_missing_calibration_are_named(name: str, calibration: Tensor | None) -> None:
    """A criterion that shows inputs says so, and lists those that need none."""
    with pytest.raises(InputError, match="calibration: criterion"):
        score(name, tiny(), calibration, seeded())


def test_an_unknown_name_lists_the_valid_ones() -> None:
    """The nearest name is suggested."""
    with pytest.raises(InputError, match=r"'magnitude'.*erk, grasp, lamp"):
        score("magnitud", tiny(), None, seeded())


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, math.nan])
def test_a_density_outside_its_range_is_refused(density: float) -> None:
    """The fraction kept lies in (0, 1]."""
    with pytest.raises(InputError, match="density: must be above 0"):
        score("synflow", tiny(), None, seeded(), density)


@pytest.mark.parametrize("name", PROBED)
def test_scores_that_are_not_finite_are_refused(name: str) -> None:
    """Calibration inputs on which the network overflows are reported with the layer, not ranked."""
    network, calibration = (
        network_of(lambda: nn.Linear(4, 3), VECTOR),
        torch.full((2, 4), torch.inf),
    )
    with pytest.raises(GapruneError, match=f"'{name}': .*'weight'"):
        score(name, network, calibration, seeded())
