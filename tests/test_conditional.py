"""The criterion `conditional` removes channels that the others express, the cheapest first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from channel_networks import IMAGE, Joined, Residual, Separable, built, images
from repair_networks import Perceptron, calibration_for, target_of
from torch import Tensor, nn

from gaprune import InputOptions, prune
from gaprune.criteria.conditional import conditional
from gaprune.errors import InputError
from gaprune.models.patterns import channel_groups, channels_of
from gaprune.models.target import Target, target_from_module

IMAGES = InputOptions(shape=IMAGE, range=(0, 1))


def ranks(target: Target, inputs: Tensor) -> list[Tensor]:
    """Return the scores of each group."""
    units = channels_of(target)
    scores = conditional(target, inputs, units)
    return [scores[part] for part in units.layout.slices]


def unexpressed(hidden: Tensor, channel: int, others: list[int]) -> float:
    """Return the variance of a channel that is left by least squares on others and a constant."""
    features = torch.cat([hidden[:, others], torch.ones(len(hidden), 1)], 1)
    fit = features @ torch.linalg.lstsq(features, hidden[:, [channel]]).solution
    return float((hidden[:, [channel]] - fit).square().mean())


def test_the_order_is_that_of_least_squares() -> None:
    """Each time the channel goes whose residual, times its squared weights, is the smallest."""
    target = target_of(Perceptron, (6,))
    inputs = calibration_for(target, 200)
    hidden = torch.tanh(target.model.fc1(inputs))  # type: ignore[operator]
    energies = target.weights["fc2.weight"].square().sum(0)
    left, order = list(range(12)), []
    for _ in range(6):  # as long as the ridge is small beside the residuals
        losses = {
            c: unexpressed(hidden, c, [o for o in left if o != c]) * float(energies[c])
            for c in left
        }
        order.append(min(losses, key=losses.__getitem__))
        left.remove(order[-1])
    scores = ranks(target, inputs)[0]
    assert sorted(scores.tolist()) == pytest.approx([(i + 1) / 12 for i in range(12)])
    assert set(scores.argsort().tolist()[:6]) == set(order)


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
        assert scores[[0, 2]].min() <= 2 / len(scores)  # some channels are silent
        assert scores.max() == 1


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
