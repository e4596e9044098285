"""Repair sites, and repair computed on the fly while a candidate runs."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
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
    watched,
)
from search_cases import seeded
from torch import Tensor, nn
from torch.func import functional_call

from gaprune.masks.supermask import masked_weights
from gaprune.models.target import Target
from gaprune.repair import find_repair_sites, repair, repaired_copy
from gaprune.repair.channel_statistics import (
    ChannelStatistics,
    channel_statistics,
    pool_statistics,
    std_ratio,
)
from gaprune.repair.dense_statistics import (
    DenseStatistics,
    correct_sites,
    measure_dense,
    repaired_outputs,
)
from gaprune.repair.repair_network import repair_candidate
from gaprune.repair.repair_sites import BIAS, NORM, STATISTICS


class Odd(nn.Module):
    """A network whose modules are shared, unused, tied or without parameters to correct.

    Args:
        norm: BatchNorm or LayerNorm.
    """

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.twice, self.unused = norm(6), norm(6)
        self.batch = nn.InstanceNorm1d(3)
        self.plain = nn.LayerNorm(6, elementwise_affine=False)
        self.bare = nn.Linear(6, 6, bias=False)
        self.tied = nn.Linear(6, 6)
        self.tied.bias = self.first.bias
        self.last = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, 6]` → `[N, 3]`."""
        hidden = self.twice(torch.relu(self.twice(torch.relu(self.first(inputs)))))
        hidden = self.batch(torch.tanh(hidden).unflatten(1, (3, 2))).flatten(1)
        hidden = torch.tanh(self.bare(self.plain(torch.tanh(hidden))))
        return self.last(torch.tanh(self.tied(hidden)))  # type: ignore[no-any-return]


class Backwards(nn.Module):
    """Its first layer is registered last."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 3)
        self.first = nn.Linear(6, 6)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, 6]` → `[N, 3]`."""
        return self.last(torch.tanh(self.first(inputs)))  # type: ignore[no-any-return]


class Prompted(nn.Module):
    """A linear layer receives a parameter without a batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.randn(5))
        self.fc1, self.fc2 = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, 6]` → `[N, 3]`."""
        return self.fc2(torch.tanh(inputs + self.fc1(self.prompt)))  # type: ignore[no-any-return]


class ByKeyword(Perceptron):
    """Its norm receives its input by keyword."""

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, 6]` → `[N, 4]`."""
        hidden = torch.tanh(self.norm(input=self.fc1(inputs)))
        return self.fc3(torch.tanh(self.fc2(hidden)))  # type: ignore[no-any-return]


class Branching(nn.Module):
    """Only the dense network uses the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, 6]` → `[N, 3]`."""
        hidden = self.fc1(inputs)
        is_dense = bool((self.fc1.weight != 0).all())
        return self.fc2(self.norm(hidden) if is_dense else hidden)  # type: ignore[no-any-return]


def case(
    build: Callable[[], nn.Module], *shape: int
) -> tuple[Target, dict[str, Tensor], DenseStatistics]:
    """Return a target, its weights under random masks, and dense statistics."""
    target = target_of(build, shape)
    inputs = calibration_for(target)
    sites = find_repair_sites(target.model, inputs, frozen=target.weights)
    weights = masked_weights(target.weights, random_masks(target))
    return target, weights, measure_dense(target.model, sites, inputs)


@pytest.mark.parametrize(
    ("norm", "names"),
    [
        (nn.BatchNorm1d, {"twice", "unused", "batch"}),
        (nn.LayerNorm, {"first", "twice", "unused", "plain", "bare", "tied", "last"}),
    ],
)
def test_modules_that_cannot_be_repaired_are_skipped(
    norm: type[nn.Module], names: set[str]
) -> None:
    """Shared, unused and tied modules, norms without statistics or weights, missing biases."""
    target = target_of(lambda: Odd(norm), (6,), "last.bias")
    sites = find_repair_sites(target.model, calibration_for(target), target.weights)
    assert not sites.rules
    reasons = dict(entry.split(": ", 1) for entry in sites.skipped)
    assert set(reasons) == names
    assert "2 times" in reasons["twice"]
    repaired = repair(target, random_masks(target), calibration_for(target))
    assert repaired.state == {}
    assert repaired.skipped == sites.skipped


INSTANCE_NORM = nn.InstanceNorm1d(3)


@pytest.mark.parametrize(
    ("build", "shape", "sites"),
    [
        (Backwards, (6,), {"first": BIAS, "last": BIAS}),
        # An InstanceNorm removes the shift that a bias would correct; a layer norm does not.
        (
            lambda: nn.Sequential(nn.Linear(4, 2), INSTANCE_NORM, nn.Flatten(), nn.Linear(6, 3)),
            (3, 4),
            {"3": BIAS},
        ),
        (
            lambda: nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3)),
            (6,),
            {"0": BIAS, "1": NORM, "2": BIAS},
        ),
        (Convolutional, (2, 6, 5), {"bn1": STATISTICS, "bn2": STATISTICS}),
    ],
)
def test_sites_come_in_order_of_execution(
    build: Callable[[], nn.Module], shape: tuple[int, ...], sites: dict[str, str]
) -> None:
    """Running statistics alone where there are any, else biases and norms."""
    target = target_of(build, shape)
    rules = find_repair_sites(target.model, calibration_for(target)).rules
    assert [(name, rule.part) for name, rule in rules.items()] == list(sites.items())


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.integers(0, 2**20),
    st.sampled_from([0.0, 1e3]),
)
def test_pooled_statistics_are_those_of_all_values(
    sizes: list[int], seed: int, level: float
) -> None:
    """Chunks of any sizes pool to the mean and variance of their concatenation."""
    values = torch.randn(sum(sizes), 3, 4, generator=seeded(seed), dtype=torch.float64) + level
    pooled = pool_statistics([channel_statistics(part, (1,)) for part in values.split(sizes)])
    rows = values.movedim(1, 0).flatten(1)
    assert pooled.entries == 4 * sum(sizes)
    assert torch.allclose(pooled.mean.flatten(), rows.mean(1), rtol=1e-12)
    assert torch.allclose(pooled.var.flatten(), rows.var(1, correction=0), rtol=1e-9)


def test_rounding_errors_are_no_spread() -> None:
    """The ratio of a constant channel far from 0 is 1."""
    varying = ChannelStatistics(9, torch.ones(1, 1), torch.ones(1, 1))
    rounded = ChannelStatistics(9, torch.full((1, 1), 1e3), torch.full((1, 1), 1e-9))
    assert std_ratio(varying, rounded) == std_ratio(rounded, varying) == 1
    assert std_ratio(varying, varying._replace(var=torch.full((1, 1), 4.0))) == 0.5


def test_a_layer_without_a_batch_axis_is_shifted() -> None:
    """The mean of one vector is its value."""
    target, _, _ = case(Prompted, 6)
    masks = random_masks(target)
    repaired = repair(target, masks, calibration_for(target))
    prompt, model = target.model.get_parameter("prompt"), repaired_copy(target, masks, repaired)
    outputs, expected = (m.get_submodule("fc1")(prompt) for m in (model, target.model))
    assert torch.allclose(outputs, expected)
    assert repaired.changed == ("fc1.bias", "fc2.bias")


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (Residual, (2, 6, 6)),
        (Perceptron, (6,)),
        (lambda: Perceptron(norm=True), (6,)),
        (Encoder, (5, 8)),
    ],
)
def test_repair_on_the_fly_has_the_outputs_of_the_repaired_network(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    """Also with pickled statistics, as workers receive them."""
    target, weights, dense = case(build, *shape)
    repaired = repair_candidate(target.model, weights, dense)
    copied = repaired_copy(target, random_masks(target), repaired)
    outputs = repaired_outputs(target.model, weights, dense)
    assert torch.allclose(outputs, copied(dense.inputs))
    assert torch.equal(dense.outputs, target.model(dense.inputs))
    assert hook_count(target.model) == 0
    pickled = pickle.loads(pickle.dumps(dense))
    assert torch.equal(repaired_outputs(target.model, weights, pickled), outputs)


@pytest.mark.parametrize(("count", "chunk"), [(24, 5), (7, 3), (5, 1), (16, 16)])
def test_outputs_of_chunks_come_in_the_order_of_the_inputs(count: int, chunk: int) -> None:
    """Dense weights need no correction, so outputs show their order."""
    target = target_of(Residual, (2, 6, 6))
    inputs = calibration_for(target, count)
    sites = find_repair_sites(target.model, inputs)
    dense = measure_dense(target.model, sites, inputs, chunk)
    assert len(dense.chunks) == -(-count // chunk)
    assert torch.allclose(dense.outputs, target.model(inputs))
    assert torch.allclose(repaired_outputs(target.model, {}, dense), target.model(inputs))


@pytest.mark.parametrize(("repeats", "chunk", "rtol"), [(2, 12, 1e-9), (1, 20, 0.1)])
def test_repair_in_chunks_is_close_to_repair_in_one_pass(
    repeats: int, chunk: int, rtol: float
) -> None:
    """Exact where every chunk has the statistics of the whole, close for small chunks."""
    target, weights, _ = case(Residual, 2, 6, 6)
    inputs = calibration_for(target, 12 if repeats == 2 else 240).repeat_interleave(repeats, dim=0)
    sites = find_repair_sites(target.model, inputs, target.weights)
    whole, chunked = (
        repair_candidate(target.model, weights, measure_dense(target.model, sites, inputs, size))
        for size in (None, chunk)
    )
    for name, value in whole.state.items():
        if name.endswith("var") or repeats == 2:
            assert torch.allclose(chunked.state[name] + 1e-5, value + 1e-5, rtol=rtol)


def test_gradients_flow_through_the_statistics() -> None:
    """The numeric check of ∂outputs/∂weights, batch statistics included."""
    target, weights, whole = case(Convolutional, 2, 4, 3)
    dense = measure_dense(target.model, whole.sites, whole.inputs[:6])
    leaves = tuple(weight.requires_grad_() for weight in weights.values())

    def run(*values: Tensor) -> Tensor:
        return repaired_outputs(target.model, dict(zip(weights, values, strict=True)), dense)

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


def test_gradients_are_finite_where_a_channel_is_dead() -> None:
    """A filter without weights has no spread."""
    target, weights, dense = case(Convolutional, 2, 6, 5)
    weights["conv1.weight"][0] = 0
    leaves = [weight.requires_grad_() for weight in weights.values()]
    loss = repaired_outputs(target.model, weights, dense).square().sum()
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, leaves))


def test_pooled_statistics_correct_other_inputs() -> None:
    """A new batch gets the statistics of the dense network on its calibration inputs."""
    target, weights, whole = case(Residual, 2, 6, 6)
    dense = measure_dense(target.model, whole.sites, whole.inputs, chunk=7)
    expected = outputs_of(target.model, whole.inputs, nn.BatchNorm2d)
    inputs = calibration_for(target, 30, seed=60)
    with (
        correct_sites(target.model, whole.sites, dense.pooled),
        watched(target.model, (nn.BatchNorm2d,)) as outputs,
    ):
        functional_call(target.model, weights, (inputs,))
    for name, values in expected.items():
        pairs = (maps.movedim(1, 0).flatten(1) for maps in (outputs[name], values))
        statistics = ((rows.mean(1), rows.var(1, correction=0)) for rows in pairs)
        assert all(map(torch.allclose, *statistics))


def test_hooks_are_removed_when_the_forward_pass_fails() -> None:
    """After an error inside the network."""
    target, weights, dense = case(Convolutional, 2, 6, 5)
    wrong = {**weights, "conv1.weight": weights["conv1.weight"][:, :1]}
    with pytest.raises(RuntimeError):
        repaired_outputs(target.model, wrong, dense)
    with pytest.raises(RuntimeError):
        find_repair_sites(target.model, dense.inputs[:, :1])
    assert hook_count(target.model) == 0


def test_modules_called_by_keyword_are_repaired() -> None:
    """As those called by position."""
    positional, by_keyword = (
        repair(target, random_masks(target), calibration_for(target)).state
        for target in (
            target_of(lambda: Perceptron(norm=True), (6,)),
            target_of(lambda: ByKeyword(norm=True), (6,)),
        )
    )
    assert positional.keys() == by_keyword.keys() == {"norm.running_mean", "norm.running_var"}
    assert all(torch.equal(value, by_keyword[name]) for name, value in positional.items())


def test_a_site_that_the_pruned_network_does_not_use_is_not_changed() -> None:
    """Its forward pass branches by the weights."""
    target = target_of(Branching, (6,))
    assert repair(target, random_masks(target), calibration_for(target)).changed == ()
