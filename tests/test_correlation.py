"""Correlation: layer inputs, elimination and ranking, each against an independent oracle."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from criterion_networks import CASES, IMAGE, VECTOR, network_of, seeded, tiny, tiny_calibration
from torch import Tensor, nn
from torch.nn import functional

from gaprune.criteria import layer_inputs, responses, score
from gaprune.criteria.correlation import eliminate
from gaprune.criteria.layer_inputs import InputMoments, WeightShape, unfold
from gaprune.criteria.responses import measure_responses
from gaprune.models.input_spec import InputSpec
from gaprune.models.zoo.networks import LeNet


def greedy_removals(weights: Tensor, covariance: Tensor) -> tuple[list[int], list[float]]:
    """Return the removals of one channel and e after each, every ρ computed from scratch."""
    variance = weights @ covariance @ weights
    remaining, removed, errors = list(range(len(weights))), [], []
    while remaining:
        correlations = {}
        for index in remaining:
            others = [other for other in remaining if other != index]
            rest = torch.zeros_like(weights)
            rest[others] = weights[others]
            deviation = (rest @ covariance @ rest * variance).sqrt()
            rho = float(rest @ covariance @ weights / deviation) if others else 0.0
            correlations[index] = rho
        best = max(correlations, key=lambda index: correlations[index])
        remaining.remove(best)
        removed.append(best)
        errors.append(float(2 * variance) * (1 - max(0.0, correlations[best])))
    return removed, errors


def covariances(size: int, groups: int = 1, blocks: int = 1) -> Tensor:
    """Return random covariances `[groups, blocks, size, size]`."""
    factors = torch.randn(groups, blocks, size, size + 3, generator=seeded(2)).double()
    return factors @ factors.mT / size


def test_elimination_keeps_the_correlation_largest() -> None:
    """Orders and running maxima of increments match an exhaustive greedy search."""
    weights = torch.randn(6, 9, generator=seeded()).double()
    covariance = covariances(9, groups=2)
    damage, order = eliminate(weights, covariance, WeightShape(3, 2, 9, 1, 9))
    for channel in range(6):
        removed, errors = greedy_removals(weights[channel], covariance[channel // 3, 0])
        assert order[channel].argsort().tolist() == removed
        steps = torch.tensor([0.0, *errors], dtype=torch.float64).cummax(0).values.diff()
        torch.testing.assert_close(damage[channel, removed], steps.cummax(0).values)


def test_blocks_are_a_covariance_with_zeros_between_them() -> None:
    """Blocks of a wide channel give the result of one block-diagonal covariance."""
    weights, blocks = torch.randn(4, 10, generator=seeded()).double(), covariances(4, blocks=3)
    whole = torch.block_diag(*blocks[0])[:10, :10]
    damage, order = eliminate(weights, blocks, WeightShape(1, 1, 10, 3, 4))
    expected = eliminate(weights, whole[None, None], WeightShape(1, 1, 10, 1, 10))
    torch.testing.assert_close(damage, expected[0])
    assert torch.equal(order, expected[1])


def test_rounds_approximate_single_removals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every weight is removed once, and the second half is nearly that of single removals."""
    weights, covariance = torch.randn(5, 300, generator=seeded()).double(), covariances(300)
    shape = WeightShape(1, 1, 300, 1, 300)
    damage, order = eliminate(weights, covariance, shape)
    assert torch.equal(order.sort(1).values, torch.arange(300.0).double().expand(5, -1))
    by_order = damage.gather(1, order.argsort(1))
    assert (by_order.diff(dim=1) >= 0).all()
    correlation = import_module("gaprune.criteria.correlation")  # the package has the function
    monkeypatch.setattr(correlation, "ROUND", 1000)
    slow = eliminate(weights, covariance, shape)[1]
    assert ((order >= 150) == (slow >= 150)).double().mean() > 0.9
    monkeypatch.setattr(correlation, "ENTRIES", 1)  # a channel at a time
    assert torch.equal(slow, eliminate(weights, covariance, shape)[1])


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 3), (6, 4)),
    "linear on sequences": (lambda: nn.Linear(4, 3), (2, 5, 4)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3, padding=1, stride=2), (2, 2, 8)),
    "conv2d": (lambda: nn.Conv2d(2, 3, (3, 2), padding=1, dilation=2), (2, 2, 6, 7)),
    "same": (lambda: nn.Conv2d(2, 3, 3, padding="same"), (2, 2, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, stride=2), (2, 4, 6, 7)),
    "circular": (lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), (2, 2, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2), (2, 1, 3, 4, 3)),
    "no batch": (lambda: nn.Conv2d(2, 3, 3), (2, 5, 6)),
}


@pytest.mark.parametrize("case", LAYERS)
def test_patches_times_weights_are_the_output(case: str) -> None:
    """Unfolded inputs times the weight, group by group, give the layer's output."""
    build, size = LAYERS[case]
    module, inputs = build(), torch.randn(size, generator=seeded())
    output: Tensor = module(inputs)
    shape = WeightShape.of(module)
    patches = unfold(module, inputs, output)
    assert patches is not None
    columns = patches.reshape(*patches.shape[: -shape.axes], shape.groups, shape.size)
    parameters = dict(module.named_parameters())
    rows = parameters["weight"].reshape(shape.groups, -1, shape.size)
    product = torch.einsum("...gd,grd->...gr", columns, rows).flatten(-2) + parameters["bias"]
    product = product if shape.axes == 1 else product.movedim(-1, 1)
    torch.testing.assert_close(product.reshape(output.shape), output, rtol=1e-4, atol=1e-5)


class Padded(nn.Conv2d):
    """A convolution that pads right and below, as TensorFlow's do."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(functional.pad(inputs, (0, 1, 0, 1)))


def test_padding_inside_a_layer_is_inferred() -> None:
    """The size of the output reveals how much padding a layer adds."""
    module, inputs = Padded(2, 3, 3, stride=2), torch.randn(2, 2, 6, 6, generator=seeded())
    patches = unfold(module, inputs, module(inputs))
    assert patches is not None
    assert patches.shape == (2, 3, 3, 2, 3, 3)
    expected = functional.unfold(functional.pad(inputs, (0, 1, 0, 1)), 3, stride=2)
    assert torch.equal(patches.flatten(3).flatten(1, 2).mT, expected)


def test_inputs_that_do_not_fit_are_not_unfolded() -> None:
    """Inputs with other features, or smaller than the kernel, give None."""
    assert unfold(nn.Linear(4, 3), torch.ones(2, 5), torch.ones(2, 3)) is None
    assert unfold(nn.Conv1d(1, 1, 4), torch.ones(1, 1, 2), torch.ones(1, 1, 0)) is None


@pytest.mark.parametrize("wide", [False, True])
def test_moments_are_the_covariance(wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The covariance is exact, however far the mean is from 0 and however many parts."""
    monkeypatch.setattr(layer_inputs, "CHUNK", 70)
    if wide:
        monkeypatch.setattr(layer_inputs, "WIDE", 5)
        monkeypatch.setattr(layer_inputs, "BLOCK", 4)
    columns = 1000 + torch.randn(50, 7, generator=seeded())
    moments = InputMoments(WeightShape.of(nn.Linear(7, 2)))
    for part in columns.split(20):
        moments.add(part, torch.arange(len(part)))
    expected = columns.T.double().cov(correction=0)
    blocks = moments.covariance()[0]
    if wide:
        torch.testing.assert_close(blocks[0], expected[:4, :4], rtol=1e-4, atol=1e-4)
        assert blocks.shape == (2, 4, 4)
        assert (blocks[1, 3] == 0).all()
        expected, blocks = expected[4:, 4:], blocks[1:, :3, :3]
    torch.testing.assert_close(blocks[0], expected, rtol=1e-4, atol=1e-4)


def test_information_of_outputs() -> None:
    """At logits, the information is 1 for each position of an output channel, in expectation."""
    responses_of = measure_responses(tiny(), tiny_calibration(4000), seeded())
    information = responses_of.layers["2.weight"].information
    torch.testing.assert_close(information, torch.ones_like(information), rtol=0.1, atol=0)
    network = network_of(lambda: nn.Conv1d(2, 3, 1), InputSpec((2, 5), "signal"))
    calibration = torch.randn(2000, 2, 5, generator=seeded())
    information = measure_responses(network, calibration, seeded()).layers["weight"].information
    torch.testing.assert_close(information, torch.full((3,), 5.0), rtol=0.1, atol=0)


def test_other_weights_get_their_own_information() -> None:
    """For weights outside layers, squared gradients estimate the same information: Σ x²."""

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(3, 4))

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs @ self.table.T

    network, calibration = network_of(Functional, VECTOR), tiny_calibration(6000).float()
    measured = measure_responses(network, calibration, seeded())
    assert not measured.layers
    expected = calibration.square().mean(0).expand(3, -1)
    torch.testing.assert_close(measured.information["table"], expected, rtol=0.35, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_scores_are_a_ranking(case: str) -> None:
    """Every rank occurs once, depends on the seed alone, and leaves the generator unchanged."""
    network, calibration = CASES[case][0](), CASES[case][1]()
    generator = seeded(3)
    scores = score("correlation", network, calibration, generator)
    total = network.layout.total
    assert torch.equal(scores.sort().values, (torch.arange(1, total + 1).double() / total).float())
    assert torch.equal(scores, score("correlation", network, calibration, seeded(3)))
    assert torch.equal(generator.get_state(), seeded(3).get_state())


class Odd(nn.Module):
    """Has a constant input feature, a dead channel and a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.never = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        # feature 0 is constant, hidden channel 1 is dead
        inputs = torch.cat([torch.full_like(inputs[:, :1], 3.0), inputs[:, 1:]], 1)
        hidden = self.first(inputs).relu() * (torch.arange(6) != 1)
        logits: Tensor = self.last(hidden)
        return logits


def test_weights_without_effect_rank_last() -> None:
    """Weights of constant inputs, dead channels and layers never called have the lowest ranks."""
    network = network_of(Odd, VECTOR)
    scores = score("correlation", network, tiny_calibration(200).float(), seeded())
    by_layer = network.layout.split(scores)
    useless = {
        "first.weight": torch.zeros(6, 4).bool(),
        "last.weight": torch.zeros(3, 6).bool(),
        "never.weight": torch.ones(2, 2).bool(),
    }
    useless["first.weight"][:, 0] = useless["first.weight"][1] = True
    useless["last.weight"][:, 1] = True
    marked = network.layout.flatten(useless)
    assert scores[marked].max() < scores[~marked].min()
    never = by_layer["never.weight"].flatten()
    magnitudes = network.weights["never.weight"].abs().flatten()
    assert torch.equal(never.argsort(), magnitudes.argsort())


def test_fewer_positions_change_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Covariances from a sample of the positions give nearly the same ranking."""
    network = network_of(LeNet, IMAGE)
    calibration = torch.rand(20, 1, 28, 28, generator=seeded())

    def ranks(columns: int) -> Tensor:
        monkeypatch.setattr(responses, "FEWEST_COLUMNS", columns)
        monkeypatch.setattr(responses, "MOST_COLUMNS", columns)
        return score("correlation", network, calibration, seeded())

    pair = torch.stack([ranks(4000), ranks(10**6)])
    assert pair.corrcoef()[0, 1] > 0.9


def test_a_layer_used_twice_counts_both() -> None:
    """A shared weight has one covariance over the inputs of all its uses."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4, bias=False)

        def forward(self, inputs: Tensor) -> Tensor:
            hidden: Tensor = self.layer(self.layer(inputs))
            return hidden

    network, calibration = network_of(Twice, VECTOR), tiny_calibration(300).float()
    measured = measure_responses(network, calibration, seeded()).layers["layer.weight"]
    columns = torch.cat([calibration, network.model.get_submodule("layer")(calibration)])
    torch.testing.assert_close(
        measured.moments.covariance()[0, 0],
        columns.T.double().cov(correction=0),
        rtol=1e-4,
        atol=1e-5,
    )
