"""The criterion `conditional` removes channels that the others express, the cheapest first."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from channel_networks import IMAGE, Joined, Residual, Separable, built, images
from repair_networks import Perceptron, calibration_for, target_of
from torch import Tensor, nn

from gaprune import InputOptions, prune
from gaprune.criteria.conditional import TRIED, conditional, conditional_loss
from gaprune.errors import InputError
from gaprune.models.patterns import channel_groups, channels_of
from gaprune.models.target import Target, target_from_module

IMAGES = InputOptions(shape=IMAGE, range=(0, 1))


def ranks(target: Target, inputs: Tensor) -> list[Tensor]:
    """Return the scores of each group."""
    units = channels_of(target)
    scores = conditional(target, inputs, units)
    return [scores[part] for part in units.layout.slices]


def error_without(features: Tensor, outputs: Tensor) -> float:
    """Return the squared error of outputs by least squares on features and a constant."""
    features = torch.cat([features, torch.ones(len(features), 1)], 1)
    fit = features @ torch.linalg.lstsq(features, outputs).solution
    return float((outputs - fit).square().sum())


def order_of(columns: Tensor, outputs: Tensor, count: int) -> list[int]:
    """Return the first channels by backward elimination, of `[samples, channels, block]`."""
    left, order = list(range(columns.shape[1])), []
    for _ in range(count):
        errors = {
            c: error_without(columns[:, [o for o in left if o != c]].flatten(1), outputs)
            for c in left
        }
        order.append(min(errors, key=errors.__getitem__))
        left.remove(order[-1])
    return order


def test_the_order_is_that_of_least_squares() -> None:
    """Each time the channel goes without which the outputs can be fitted best."""
    target = target_of(Perceptron, (6,))
    inputs = calibration_for(target, 200)
    hidden = torch.tanh(target.model.fc1(inputs))  # type: ignore[operator]
    outputs = target.model.fc2(hidden)  # type: ignore[operator]
    order = order_of(hidden[:, :, None], outputs / outputs.std(0), 5)
    scores = ranks(target, inputs)[0]
    assert sorted(scores.tolist()) == pytest.approx([(i + 1) / 12 for i in range(12)])
    losses = conditional_loss(target, inputs, channels_of(target))[:12]
    assert torch.equal(losses.argsort(), scores.argsort())
    assert set(scores.argsort().tolist()[:5]) == set(order)


def test_a_convolution_is_fitted_to_patches() -> None:
    """A channel is as many inputs as the kernel has entries, with strides and padding."""
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(1, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 4, 3, 2, padding=1))
    target = target_from_module(
        nn.Sequential(*convolutions).double(), inputs=InputOptions((1, 8, 8), range=(0, 1))
    )
    inputs = torch.rand(50, 1, 8, 8, dtype=torch.float64)
    hidden = target.model[:2](inputs)  # type: ignore[index]
    patches = nn.functional.unfold(hidden, 3, padding=1, stride=2).mT.reshape(-1, 6, 9)
    outputs = target.model[2](hidden).movedim(1, -1).reshape(-1, 4)  # type: ignore[index]
    order = order_of(patches, outputs / outputs.std(0), 4)
    assert ranks(target, inputs)[0].argsort().tolist()[:4] == order


def test_losses_of_a_group_are_scaled_to_the_change_of_the_outputs() -> None:
    """Without half of its channels, others fitted and moments repaired, per multiply-add."""
    target = target_of(Perceptron, (6,))
    model, inputs = target.model, calibration_for(target, TRIED)
    hidden = torch.tanh(model.fc2(torch.tanh(model.fc1(inputs))))  # type: ignore[operator]
    outputs = model.fc3(hidden).detach()  # type: ignore[operator]
    losses = conditional_loss(target, inputs, channels_of(target))[12:]
    features = hidden[:, losses.argsort()[4:]].detach()
    features, centred = features - features.mean(0), outputs - outputs.mean(0)
    fit = features @ torch.linalg.lstsq(features, centred).solution
    fit *= centred.std(0) / fit.std(0)
    change = (fit - centred).square().mean() / centred.square().mean()
    macs = TRIED * 4
    assert float(losses.sort().values[:4].sum()) * macs == pytest.approx(float(change), rel=0.02)


@pytest.mark.parametrize("criterion", [conditional, conditional_loss])
def test_many_outputs(criterion: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of layers with more outputs than inputs are the same in a basis of their weights."""
    target = target_of(Perceptron, (6,))
    inputs, units = calibration_for(target, 200), channels_of(target)
    expected = criterion(target, inputs, units)
    monkeypatch.setattr(sys.modules[conditional.__module__], "MORE_OUTPUTS", 0)
    assert torch.allclose(criterion(target, inputs, units), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", [Residual, Separable, Joined])
def test_a_repeated_channel_goes_early(kind: type[nn.Module]) -> None:
    """Residual sums, depthwise layers, concatenation, and a linear layer behind a flatten."""
    target = target_from_module(built(kind), inputs=IMAGES)
    with torch.no_grad():
        for group in channel_groups(target):
            pairs = zip(group.channels[0].outputs, group.channels[2].outputs, strict=True)
            for (layer, index), (_, copy) in pairs:
                module = target.model.get_submodule(layer)
                tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
                for tensor in tensors:
                    if tensor.ndim:
                        tensor[copy] = tensor[index]
    for scores in ranks(target, images(64)):
        assert int(scores[[0, 2]].argmin()) * 2 in scores.argsort()[:2]  # some are silent


def test_it_seeds_a_search_of_channels_and_refuses_other_patterns() -> None:
    """As a method, it is the one-shot mask of that name."""
    short: dict[str, Any] = {"calibration": ("procedural",), "calibration_count": 16}
    options = {**short, "sparsity": 0.5, "pattern": "channel", "validation_count": 16}
    options["generations"] = 0
    searched = prune(built(Residual), inputs=IMAGES, **options)
    assert {"conditional", "conditional-layer"} <= set(searched.baselines)
    one_shot = prune(built(Residual), inputs=IMAGES, **options, method="conditional")
    assert set(one_shot.baselines) == {"conditional"}
    with pytest.raises(InputError, match=r"^method: 'conditional'.*pattern='channel'"):
        prune(built(Residual), inputs=IMAGES, sparsity=0.5, method="conditional")
