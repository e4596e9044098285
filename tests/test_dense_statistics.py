"""Where repair writes, and repair computed on the fly while a candidate runs."""

from __future__ import annotations

import copy
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
    seeded,
    target_of,
    watched,
)
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
from gaprune.repair.dense_statistics import correct_sites, measure_dense, repaired_outputs
from gaprune.repair.repair_network import repair_candidate
from gaprune.repair.repair_rules import BIAS, NORM, STATISTICS


class Odd(nn.Module):
    """A network whose modules are shared, unused, tied or without anything to change.

    Args:
        norm: BatchNorm or LayerNorm.
    """

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.twice, self.unused = norm(6), norm(6)
        self.batch = nn.BatchNorm1d(3, track_running_stats=False)
        self.plain = nn.LayerNorm(6, elementwise_affine=False)
        self.bare = nn.Linear(6, 6, bias=False)
        self.tied = nn.Linear(6, 6)
        self.tied.bias = self.first.bias
        self.last = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, 6]` → `[N, 3]`."""
        hidden = self.twice(torch.relu(self.twice(torch.relu(self.first(inputs)))))
        hidden = self.plain(
            torch.tanh(self.batch(torch.tanh(hidden).unflatten(1, (3, 2))).flatten(1))
        )
        return self.last(torch.tanh(self.tied(torch.tanh(self.bare(hidden)))))  # type: ignore[no-any-return]


def case(build: Callable[[], nn.Module], *shape: int) -> tuple[Target, dict[str, Tensor], Tensor]:
    """Return a target, masks of its kept weights and calibration inputs."""
    target = target_of(build, shape)
    kept = masked_weights(target.weights, random_masks(target))
    return target, kept, calibration_for(target)


@pytest.mark.parametrize(
    ("norm", "names"),
    [
        (nn.BatchNorm1d, {"twice", "unused", "batch"}),
        (nn.LayerNorm, {"first", "twice", "unused", "plain", "bare", "tied", "last"}),
    ],
)
def test_what_cannot_be_repaired_is_skipped(norm: type[nn.Module], names: set[str]) -> None:
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


def test_sites_come_in_order_of_execution() -> None:
    """A layer that is registered first and runs last is repaired last."""

    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(6, 3)
            self.first = nn.Linear(6, 6)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.last(torch.tanh(self.first(inputs)))  # type: ignore[no-any-return]

    target = target_of(Backwards, (6,))
    assert list(find_repair_sites(target.model, calibration_for(target)).rules) == ["first", "last"]


def test_a_bias_before_a_batchnorm_is_left_to_it() -> None:
    """The BatchNorm removes every shift; a layer norm does not."""
    norm = nn.BatchNorm1d(3, track_running_stats=False)
    batch = nn.Sequential(nn.Linear(4, 2), norm, nn.Flatten(), nn.Linear(6, 3))
    target = target_of(lambda: batch, (3, 4))
    assert list(find_repair_sites(target.model, calibration_for(target)).rules) == ["3"]
    behind = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    target = target_of(lambda: behind, (6,))
    assert list(find_repair_sites(target.model, calibration_for(target)).rules) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("build", "shape", "parts"),
    [(Convolutional, (2, 6, 5), {STATISTICS}), (Encoder, (5, 8), {BIAS, NORM})],
)
def test_the_parts_follow_from_the_norms(
    build: Callable[[], nn.Module], shape: tuple[int, ...], parts: set[str]
) -> None:
    """Running statistics alone where there are any, else biases and the weights of norms."""
    target = target_of(build, shape)
    sites = find_repair_sites(target.model, calibration_for(target))
    assert {rule.part for rule in sites.rules.values()} == parts


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.integers(0, 2**20),
    st.sampled_from([0.0, 1e3]),
)
def test_pooled_moments_are_those_of_all_values(sizes: list[int], seed: int, level: float) -> None:
    """Chunks of any sizes pool to the mean and variance of their concatenation."""
    values = torch.randn(sum(sizes), 3, 4, generator=seeded(seed), dtype=torch.float64) + level
    pooled = pool_statistics([channel_statistics(part, (1,)) for part in values.split(sizes)])
    rows = values.movedim(1, 0).flatten(1)
    assert pooled.entries == 4 * sum(sizes)
    assert torch.allclose(pooled.mean.flatten(), rows.mean(1), rtol=1e-12)
    assert torch.allclose(pooled.var.flatten(), rows.var(1, correction=0), rtol=1e-9)


@given(st.integers(0, 2**20), st.floats(1e-2, 1e2), st.floats(-10, 10))
def test_the_gain_undoes_any_scale_and_shift(seed: int, scale: float, shift: float) -> None:
    """σd/σp of x and scale · x + shift is 1/scale, on every channel."""
    values = torch.randn(50, 3, generator=seeded(seed), dtype=torch.float64)
    found = std_ratio(
        channel_statistics(values, (1,)), channel_statistics(scale * values + shift, (1,))
    )
    assert torch.allclose(found, torch.full_like(found, 1 / scale), rtol=1e-6)


def test_a_layer_on_one_vector_is_shifted_too() -> None:
    """A linear layer may see a parameter without a batch axis; its mean is its value."""

    class Prompted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.prompt = nn.Parameter(torch.randn(5))
            self.fc1, self.fc2 = nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.fc2(torch.tanh(inputs + self.fc1(self.prompt)))  # type: ignore[no-any-return]

    target = target_of(Prompted, (6,))
    masks = random_masks(target)
    repaired = repair(target, masks, calibration_for(target))
    copied = repaired_copy(target, masks, repaired)
    prompt = target.model.get_parameter("prompt")
    found, wanted = (model.get_submodule("fc1")(prompt) for model in (copied, target.model))
    assert torch.allclose(found, wanted)
    assert repaired.changed == ("fc1.bias", "fc2.bias")


def test_rounding_is_no_spread() -> None:
    """A constant channel far from zero has a spread of rounding errors only: gain 1."""
    constant = torch.full((1, 1), 1000.0)
    noise = ChannelStatistics(100, constant, torch.full((1, 1), 1e-9))
    sound = ChannelStatistics(100, constant, torch.ones(1, 1))
    assert std_ratio(sound, noise) == std_ratio(noise, sound) == std_ratio(noise, noise) == 1
    assert std_ratio(sound, sound._replace(var=torch.full((1, 1), 4.0))) == 0.5


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (Convolutional, (2, 6, 5)),
        (Residual, (2, 6, 6)),
        (Perceptron, (6,)),
        (lambda: Perceptron(norm=True), (6,)),
        (Encoder, (5, 8)),
    ],
)
def test_repair_on_the_fly_answers_what_the_repaired_network_answers(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    """On one chunk both are the same function of the same inputs."""
    target, kept, calibration = case(build, *shape)
    sites = find_repair_sites(target.model, calibration, frozen=target.weights)
    anchors = measure_dense(target.model, sites, calibration)
    copied = repaired_copy(
        target, random_masks(target), repair_candidate(target.model, kept, anchors)
    )
    assert torch.allclose(repaired_outputs(target.model, kept, anchors), copied(calibration))
    assert torch.equal(anchors.outputs, target.model(calibration))
    assert hook_count(target.model) == 0


@pytest.mark.parametrize(("count", "chunk"), [(24, 5), (7, 3), (5, 1), (16, 16)])
def test_outputs_of_chunks_come_in_the_order_of_the_inputs(count: int, chunk: int) -> None:
    """Under the dense weights every chunk is corrected by nothing, so outputs show their places."""
    target = target_of(Residual, (2, 6, 6))
    calibration = calibration_for(target, count)
    anchors = measure_dense(
        target.model, find_repair_sites(target.model, calibration), calibration, chunk
    )
    assert len(anchors.chunks) == -(-count // chunk)
    assert torch.allclose(anchors.outputs, target.model(calibration))
    assert torch.allclose(repaired_outputs(target.model, {}, anchors), target.model(calibration))


def chunked_state(target: Target, calibration: Tensor, chunk: int | None) -> dict[str, Tensor]:
    """Return what repair in chunks writes into a network with random masks."""
    weights = masked_weights(target.weights, random_masks(target, 0.7))
    sites = find_repair_sites(target.model, calibration, target.weights)
    dense = measure_dense(target.model, sites, calibration, chunk)
    return repair_candidate(target.model, weights, dense).state


def test_chunks_are_close_to_one_pass() -> None:
    """Exact where every chunk has the statistics of the whole, close for small chunks."""
    target = target_of(Residual, (2, 6, 6))
    doubled = calibration_for(target, 12).repeat_interleave(2, dim=0)
    whole, halves = (chunked_state(target, doubled, chunk) for chunk in (None, 12))
    assert all(torch.allclose(value, halves[name], rtol=1e-9) for name, value in whole.items())
    calibration = calibration_for(target, 240)
    whole, small = (chunked_state(target, calibration, chunk) for chunk in (None, 20))
    for name, value in whole.items():
        if name.endswith("var"):
            assert torch.allclose(small[name] + 1e-5, value + 1e-5, rtol=0.1)


def test_gradients_flow_through_the_statistics() -> None:
    """The numeric check of ∂outputs/∂weights, batch statistics included."""
    target, kept, _ = case(Convolutional, 2, 4, 3)
    calibration = calibration_for(target, 6)
    anchors = measure_dense(target.model, find_repair_sites(target.model, calibration), calibration)
    names = list(kept)
    leaves = tuple(weight.requires_grad_() for weight in kept.values())

    def run(*weights: Tensor) -> Tensor:
        named = dict(zip(names, weights, strict=True))
        return repaired_outputs(target.model, named, anchors)

    assert torch.autograd.gradcheck(run, leaves)


def test_a_common_factor_on_a_filter_has_no_gradient_behind_a_batchnorm() -> None:
    """Scaling a filter is undone by the statistics, so the gradient is orthogonal to the filter."""
    target, kept, calibration = case(Convolutional, 2, 6, 5)
    anchors = measure_dense(target.model, find_repair_sites(target.model, calibration), calibration)
    weight = kept["conv1.weight"].requires_grad_()
    repaired_outputs(target.model, kept, anchors).square().sum().backward()
    assert weight.grad is not None
    along = (weight.grad * weight).flatten(1).sum(1)
    assert (along.abs() < 1e-9 * (weight.grad.norm() * weight.norm())).all()
    functional_call(target.model, kept, (calibration,)).square().sum().backward()
    assert ((weight.grad * weight).flatten(1).sum(1).abs() > 1e-3).any()


def test_gradients_are_finite_where_a_channel_is_dead() -> None:
    """A filter without weights has no spread, and no NaN comes of it."""
    target, kept, calibration = case(Convolutional, 2, 6, 5)
    kept["conv1.weight"][0] = 0
    anchors = measure_dense(target.model, find_repair_sites(target.model, calibration), calibration)
    leaves = [weight.requires_grad_() for weight in kept.values()]
    loss = repaired_outputs(target.model, kept, anchors).square().sum()
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, leaves))


def test_pooled_statistics_serve_other_inputs() -> None:
    """A batch that the dense network never saw gets the moments it has on its calibration inputs."""
    target, kept, calibration = case(Residual, 2, 6, 6)
    sites = find_repair_sites(target.model, calibration)
    anchors = measure_dense(target.model, sites, calibration, chunk=7)
    dense = outputs_of(target.model, calibration, nn.BatchNorm2d)
    fresh = calibration_for(target, 30, seed=60)
    kinds = (nn.BatchNorm2d,)
    with correct_sites(target.model, sites, anchors.pooled), watched(target.model, kinds) as seen:
        functional_call(target.model, kept, (fresh,))
    for name, wanted in dense.items():
        pairs = (values.movedim(1, 0).flatten(1) for values in (seen[name], wanted))
        found, expected = ((rows.mean(1), rows.var(1, correction=0)) for rows in pairs)
        assert all(map(torch.allclose, found, expected))


def test_hooks_go_even_when_the_forward_fails() -> None:
    """An error inside the network leaves nothing hanging on it."""
    target, kept, calibration = case(Convolutional, 2, 6, 5)
    sites = find_repair_sites(target.model, calibration)
    anchors = measure_dense(target.model, sites, calibration)
    wrong = {**kept, "conv1.weight": kept["conv1.weight"][:, :1]}
    with pytest.raises(RuntimeError):
        repaired_outputs(target.model, wrong, anchors)
    with pytest.raises(RuntimeError):
        find_repair_sites(target.model, calibration[:, :1])
    assert hook_count(target.model) == 0


def test_sites_and_anchors_travel_to_workers() -> None:
    """They hold names and tensors, no modules: pickled or copied they repair alike."""
    target, kept, calibration = case(Encoder, 5, 8)
    anchors = measure_dense(target.model, find_repair_sites(target.model, calibration), calibration)
    wanted = repaired_outputs(target.model, kept, anchors)
    for travelled in (pickle.loads(pickle.dumps(anchors)), copy.deepcopy(anchors)):
        assert torch.equal(repaired_outputs(target.model, kept, travelled), wanted)


def test_modules_called_by_keyword_are_repaired() -> None:
    """A norm may be given its input by name."""

    class ByName(Perceptron):
        def forward(self, inputs: Tensor) -> Tensor:
            hidden = torch.tanh(self.norm(input=self.fc1(inputs)))
            return self.fc3(torch.tanh(self.fc2(hidden)))  # type: ignore[no-any-return]

    plain = target_of(lambda: Perceptron(norm=True), (6,))
    named = target_of(lambda: ByName(norm=True), (6,))
    states = [repair(t, random_masks(t), calibration_for(t)).state for t in (plain, named)]
    assert states[0].keys() == states[1].keys() == {"norm.running_mean", "norm.running_var"}
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_site_that_some_inputs_go_around_is_left_out() -> None:
    """Where forward takes another way for the pruned network, that module keeps its values."""

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.norm, self.fc2 = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = self.fc1(inputs)
            whole = bool((self.fc1.weight != 0).all())
            return self.fc2(self.norm(hidden) if whole else hidden)  # type: ignore[no-any-return]

    target = target_of(Branching, (6,))
    masks = random_masks(target)
    assert repair(target, masks, calibration_for(target)).changed == ()
