"""Correlation: layer inputs, elimination and ranking, each against an independent oracle."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from criterion_networks import CASES, VECTOR, network_of, seeded, tiny, tiny_calibration
from torch import Tensor, nn
from torch.nn import functional

from gaprune.criteria import layer_inputs, responses, score
from gaprune.criteria.correlation import eliminate
from gaprune.criteria.layer_inputs import InputMoments, WeightShape, unfold
from gaprune.criteria.responses import measure_responses
from gaprune.models.input_spec import InputSpec


def one_by_one(weights: Tensor, covariance: Tensor) -> tuple[list[int], list[float]]:
    """Return the removals of one channel and e after each, every ρ computed from scratch."""
    variance = weights @ covariance @ weights
    alive, removed, errors = list(range(len(weights))), [], []
    while alive:
        found = {}
        for index in alive:
            kept = torch.zeros_like(weights)
            rest = [one for one in alive if one != index]
            kept[rest] = weights[rest]
            spread = (kept @ covariance @ kept * variance).sqrt()
            found[index] = float(kept @ covariance @ weights / spread) if rest else 0.0
        best = max(found, key=lambda index: found[index])
        alive.remove(best)
        removed.append(best)
        errors.append(float(2 * variance) * (1 - max(0.0, found[best])))
    return removed, errors


def spread(size: int, groups: int = 1, blocks: int = 1) -> Tensor:
    """Return random covariances `[groups, blocks, size, size]`."""
    factors = torch.randn(groups, blocks, size, size + 3, generator=seeded(2)).double()
    return factors @ factors.mT / size


def test_elimination_removes_what_leaves_the_correlation_largest() -> None:
    """Orders and running maxima of increments are those of trying every removal, by definition."""
    weights = torch.randn(6, 9, generator=seeded()).double()
    covariance = spread(9, groups=2)
    damage, order = eliminate(weights, covariance, WeightShape(3, 2, 9, 1, 9))
    for channel in range(6):
        removed, errors = one_by_one(weights[channel], covariance[channel // 3, 0])
        assert order[channel].argsort().tolist() == removed
        steps = torch.tensor([0.0, *errors], dtype=torch.float64).cummax(0).values.diff()
        torch.testing.assert_close(damage[channel, removed], steps.cummax(0).values)


def test_blocks_are_a_covariance_with_zeros_between_them() -> None:
    """A wide channel in blocks goes like the same one whose covariance is block-diagonal."""
    weights, blocks = torch.randn(4, 10, generator=seeded()).double(), spread(4, blocks=3)
    whole = torch.block_diag(*blocks[0])[:10, :10]
    damage, order = eliminate(weights, blocks, WeightShape(1, 1, 10, 3, 4))
    expected = eliminate(weights, whole[None, None], WeightShape(1, 1, 10, 1, 10))
    torch.testing.assert_close(damage, expected[0])
    assert torch.equal(order, expected[1])


def test_rounds_take_several_and_stay_near_the_slow_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every weight goes exactly once, and the last half is nearly that of single removals."""
    weights, covariance = torch.randn(5, 600, generator=seeded()).double(), spread(600)
    shape = WeightShape(1, 1, 600, 1, 600)
    damage, order = eliminate(weights, covariance, shape)
    assert torch.equal(order.sort(1).values, torch.arange(600.0).double().expand(5, -1))
    by_order = damage.gather(1, order.argsort(1))
    assert (by_order.diff(dim=1) >= 0).all()
    correlation = import_module("gaprune.criteria.correlation")  # the package has the function
    monkeypatch.setattr(correlation, "ROUND", 1000)
    slow = eliminate(weights, covariance, shape)[1]
    assert ((order >= 300) == (slow >= 300)).double().mean() > 0.9
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
    """What is unfolded, multiplied with the weight group by group, is what the layer puts out."""
    build, size = LAYERS[case]
    module, inputs = build(), torch.randn(size, generator=seeded())
    output: Tensor = module(inputs)
    shape = WeightShape.of(module)
    patches = unfold(module, inputs, output)
    assert patches is not None
    columns = patches.reshape(*patches.shape[: -shape.axes], shape.groups, shape.size)
    parameters = dict(module.named_parameters())
    rows = parameters["weight"].reshape(shape.groups, -1, shape.size)
    made = torch.einsum("...gd,grd->...gr", columns, rows).flatten(-2) + parameters["bias"]
    found = made if shape.axes == 1 else made.movedim(-1, 1)
    torch.testing.assert_close(found.reshape(output.shape), output, rtol=1e-4, atol=1e-5)


class Padded(nn.Conv2d):
    """A convolution that pads by itself, as TensorFlow's do."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Pad to the right and below."""
        return super().forward(functional.pad(inputs, (0, 1, 0, 1)))


def test_padding_that_a_layer_does_by_itself_is_found() -> None:
    """The output tells how much is missing."""
    module, inputs = Padded(2, 3, 3, stride=2), torch.randn(2, 2, 6, 6, generator=seeded())
    patches = unfold(module, inputs, module(inputs))
    assert patches is not None
    assert patches.shape == (2, 3, 3, 2, 3, 3)
    expected = functional.unfold(functional.pad(inputs, (0, 1, 0, 1)), 3, stride=2)
    assert torch.equal(patches.flatten(3).flatten(1, 2).mT, expected)


def test_inputs_that_do_not_fit_are_not_unfolded() -> None:
    """Neither other features nor less than a kernel."""
    assert unfold(nn.Linear(4, 3), torch.ones(2, 5), torch.ones(2, 3)) is None
    assert unfold(nn.Conv1d(1, 1, 4), torch.ones(1, 1, 2), torch.ones(1, 1, 0)) is None


@pytest.mark.parametrize("wide", [False, True])
def test_moments_are_the_covariance(wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the columns, centred, however far from 0 and in however many parts."""
    monkeypatch.setattr(layer_inputs, "CHUNK", 70)
    if wide:
        monkeypatch.setattr(layer_inputs, "WIDE", 5)
        monkeypatch.setattr(layer_inputs, "BLOCK", 4)
    columns = 1000 + torch.randn(50, 7, generator=seeded())
    moments = InputMoments(WeightShape.of(nn.Linear(7, 2)))
    for part in columns.split(20):
        moments.add(part, torch.arange(len(part)))
    expected = columns.T.double().cov(correction=0)
    found = moments.covariance()[0]
    if wide:
        torch.testing.assert_close(found[0], expected[:4, :4], rtol=1e-4, atol=1e-4)
        assert found.shape == (2, 4, 4)
        assert (found[1, 3] == 0).all()
        expected, found = expected[4:, 4:], found[1:, :3, :3]
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)


def test_information_is_that_of_a_gaussian_around_the_outputs() -> None:
    """At the logits it is 1, in expectation over the answers drawn."""
    network, calibration = tiny(), tiny_calibration(4000)
    layers = measure_responses(network, calibration, seeded()).layers
    found = layers["2.weight"].information
    torch.testing.assert_close(found, torch.ones_like(found), rtol=0.1, atol=0)


def test_information_adds_up_over_positions() -> None:
    """That of an output channel is one at every one of its positions."""
    network = network_of(lambda: nn.Conv1d(2, 3, 1), InputSpec((2, 5), "signal"))
    calibration = torch.randn(2000, 2, 5, generator=seeded())
    found = measure_responses(network, calibration, seeded()).layers["weight"].information
    torch.testing.assert_close(found, torch.full((3,), 5.0), rtol=0.1, atol=0)


def test_other_weights_get_their_own_information() -> None:
    """Where inputs cannot be unfolded, squares of gradients estimate the same: Σ x²."""

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(3, 4))

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs @ self.table.T

    network, calibration = network_of(Functional, VECTOR), tiny_calibration(6000).float()
    found = measure_responses(network, calibration, seeded())
    assert not found.layers
    expected = calibration.square().mean(0).expand(3, -1)
    torch.testing.assert_close(found.information["table"], expected, rtol=0.35, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_scores_are_a_ranking_and_the_network_stays(case: str) -> None:
    """Every rank once; the same for the same seed; hooks gone and the generator where it was."""
    network, calibration = CASES[case][0](), CASES[case][1]()
    before = {name: one.clone() for name, one in network.model.state_dict().items()}
    generator = seeded(3)
    scores = score("correlation", network, calibration, generator)
    total = network.layout.total
    assert torch.equal(scores.sort().values, (torch.arange(1, total + 1).double() / total).float())
    assert torch.equal(scores, score("correlation", network, calibration, seeded(3)))
    assert torch.equal(generator.get_state(), seeded(3).get_state())
    assert not any(one._forward_hooks for one in network.model.modules())
    for name, one in network.model.state_dict().items():
        assert torch.equal(one, before[name])
        assert not one.requires_grad


class Odd(nn.Module):
    """A channel that nothing feeds, an input that never moves, a layer that is never called."""

    def __init__(self) -> None:
        """Build all of them."""
        super().__init__()
        self.first, self.last, self.never = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature 0 is made constant, hidden channel 1 dead."""
        inputs = torch.cat([torch.full_like(inputs[:, :1], 3.0), inputs[:, 1:]], 1)
        hidden = self.first(inputs).relu() * (torch.arange(6) != 1)
        logits: Tensor = self.last(hidden)
        return logits


def test_what_moves_nothing_goes_first() -> None:
    """Constant inputs, dead channels and layers never called stand last, those by magnitude."""
    network = network_of(Odd, VECTOR)
    scores = score("correlation", network, tiny_calibration(200).float(), seeded())
    found = network.layout.split(scores)
    useless = {
        "first.weight": torch.zeros(6, 4).bool(),
        "last.weight": torch.zeros(3, 6).bool(),
        "never.weight": torch.ones(2, 2).bool(),
    }
    useless["first.weight"][:, 0] = useless["first.weight"][1] = True
    useless["last.weight"][:, 1] = True
    marked = network.layout.flatten(useless)
    assert scores[marked].max() < scores[~marked].min()
    never = found["never.weight"].flatten()
    magnitudes = network.weights["never.weight"].abs().flatten()
    assert torch.equal(never.argsort(), magnitudes.argsort())


def test_correlation_survives_where_magnitude_errs() -> None:
    """Large weights on inputs that hardly move go before small ones on those that do."""
    network = network_of(lambda: nn.Linear(4, 3, bias=False), VECTOR)
    network.weights["weight"][:, :2] *= 20
    calibration = tiny_calibration(500).float() * torch.tensor([1e-3, 1e-3, 1, 1])
    scores = score("correlation", network, calibration, seeded()).view(3, 4)
    assert scores[:, :2].max() < scores[:, 2:].min()


def test_fewer_positions_change_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Covariances from a sample of the positions give nearly the same ranking."""
    network, calibration = CASES["lenet"][0](), CASES["lenet"][1]()

    def ranks(columns: int) -> Tensor:
        monkeypatch.setattr(responses, "FEWEST_COLUMNS", columns)
        monkeypatch.setattr(responses, "MOST_COLUMNS", columns)
        return score("correlation", network, calibration, seeded())

    pair = torch.stack([ranks(4000), ranks(10**6)])
    assert pair.corrcoef()[0, 1] > 0.9


def test_a_layer_used_twice_counts_both() -> None:
    """A shared weight has one covariance over all its inputs, and the information of all uses."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4, bias=False)

        def forward(self, inputs: Tensor) -> Tensor:
            hidden: Tensor = self.layer(self.layer(inputs))
            return hidden

    network, calibration = network_of(Twice, VECTOR), tiny_calibration(300).float()
    found = measure_responses(network, calibration, seeded()).layers["layer.weight"]
    columns = torch.cat([calibration, network.model.get_submodule("layer")(calibration)])
    torch.testing.assert_close(
        found.moments.covariance()[0, 0],
        columns.T.double().cov(correction=0),
        rtol=1e-4,
        atol=1e-5,
    )
