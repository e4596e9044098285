"""Guided gradient steps: the fade from repaired to strict, and the statistics loss.

Searches on repaired candidates are tested in `test_repair_in_loop.py`.
"""

from __future__ import annotations

import pytest
import torch
from repair_networks import (
    REPAIRABLE,
    Convolutional,
    Encoder,
    Perceptron,
    flat_mask,
    gradient_step,
    guided_evaluator,
    hook_count,
    masked,
    normed,
    target_of,
)
from search_cases import seeded
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from gaprune.evaluation.forward_modes import StrictForward
from gaprune.models.target import Target
from gaprune.repair.channel_statistics import ChannelStatistics, statistics_loss

NETWORKS = {**REPAIRABLE, "layer norms": (Encoder, (5, 8))}
TARGETS = {name: target_of(*case, double=False) for name, case in NETWORKS.items()}


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    """A float32 network with BatchNorm, with layer norms, or with biases alone."""
    return TARGETS[request.param]


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_the_ends_of_the_fade_are_the_repaired_and_the_strict_network(
    target: Target, weight: float
) -> None:
    """Bit for bit; without a statistics loss the gradients are equal too."""
    evaluator, mask = guided_evaluator(target, statistics_loss=weight), flat_mask(target)
    for fade, end in ((0.0, evaluator.repaired), (1.0, evaluator.strict)):
        faded = evaluator.with_fade(fade)
        batches = [mode.draw_batch(20, seeded()) for mode in (faded, end)]
        step, expected = (
            gradient_step(faded, mask, batches[0]),
            gradient_step(end, mask, batches[1]),
        )
        assert torch.equal(step.outputs, expected.outputs)
        assert (step.penalty is None, expected.penalty) == (weight == 0, None)
        gradients = faded.score_gradient(mask, batches[0]), end.score_gradient(mask, batches[1])
        assert torch.equal(*gradients) == (weight == 0)


def test_a_fade_applies_a_fraction_of_every_correction() -> None:
    """Equals a network with one BatchNorm written out by hand."""
    target = target_of(normed, (6,))
    evaluator, mask = guided_evaluator(target), flat_mask(target)
    network, weights = target.model, masked(target, mask)
    assert isinstance(network, Perceptron)
    batch = evaluator.with_fade(0.5).draw_batch(20, seeded())
    dense = batch.inputs @ network.fc1.weight.T + network.fc1.bias
    pruned = batch.inputs @ weights["fc1.weight"].T + network.fc1.bias
    matched = (pruned - pruned.mean(0)) * dense.std(0) / pruned.std(0) + dense.mean(0)
    for fade in (0.0, 0.3, 1.0):
        hidden = torch.tanh(network.norm(fade * pruned + (1 - fade) * matched))
        hidden = torch.tanh(functional.linear(hidden, weights["fc2.weight"], network.fc2.bias))
        expected = functional.linear(hidden, weights["fc3.weight"], network.fc3.bias)
        outputs = gradient_step(evaluator.with_fade(fade), mask, batch).outputs
        assert torch.allclose(outputs, expected, rtol=1e-10)


def test_a_full_mask_has_no_statistics_loss(target: Target) -> None:
    """The penalty is exactly 0 at any fade."""
    full = torch.ones(target.layout.total, dtype=torch.bool)
    for fade in (0.0, 0.4, 1.0):
        evaluator = guided_evaluator(target, statistics_loss=2.0, fade=fade)
        penalty = gradient_step(evaluator, full, evaluator.draw_batch(20, seeded())).penalty
        assert penalty is not None
        assert penalty.item() == 0


def gaussians(maps: Tensor, smoothing: float) -> Normal:
    """Return one Gaussian per channel of `[N, C, …]`, its variance enlarged."""
    flat = maps.transpose(0, 1).flatten(1)
    return Normal(flat.mean(1), (flat.var(1, correction=0) + smoothing).sqrt())


def test_the_penalty_is_the_mean_divergence_of_the_sites() -> None:
    """Equals torch's KL divergence of Gaussians, averaged over both norms of `Convolutional`."""
    target = target_of(Convolutional, (2, 6, 6))
    evaluator, network = guided_evaluator(target, statistics_loss=3.0), target.model
    assert isinstance(network, Convolutional)
    for seed in (1, 2):
        mask, batch = flat_mask(target, seed), evaluator.draw_batch(20, seeded(seed))
        weights, divergences = masked(target, mask), []
        dense = pruned = batch.inputs
        for name, norm in (("conv1.weight", network.bn1), ("conv2.weight", network.bn2)):
            dense = functional.conv2d(dense, target.weights[name], padding=1)
            pruned = functional.conv2d(pruned, weights[name], padding=1)
            smoothing = 1e-3 * dense.transpose(0, 1).flatten(1).var(1, correction=0).mean().item()
            pair = gaussians(pruned, smoothing), gaussians(dense, smoothing)
            divergences.append(kl_divergence(*pair).mean().item())
            dense, pruned = norm(dense).relu(), norm(pruned).relu()
        penalty = gradient_step(evaluator, mask, batch).penalty
        assert penalty is not None
        assert penalty.item() == pytest.approx(3 * sum(divergences) / 2, rel=1e-9)
        assert penalty > 0.06


def test_constant_channels_have_no_statistics_loss() -> None:
    """Constant dense channels give no scale; loss and gradient stay finite."""
    leaf = torch.ones(4, requires_grad=True)
    constant = ChannelStatistics(1, torch.ones(4), torch.zeros(4))
    assert statistics_loss(constant, ChannelStatistics(1, leaf, leaf)).item() == 0
    partly = ChannelStatistics(9, torch.ones(4), torch.tensor([0.0, 1.0, 2.0, 1.0]))
    loss = statistics_loss(partly, ChannelStatistics(9, leaf, torch.zeros(4)))
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    target = target_of(normed, (6,))
    evaluator = guided_evaluator(target, statistics_loss=1.0)
    batch = evaluator.draw_batch(1, seeded())
    assert evaluator.score_gradient(flat_mask(target), batch).isfinite().all()


def test_guided_evaluators_score_the_strict_network(target: Target) -> None:
    """Fitness and validation score are strict; weights, gradients and hooks stay as they were."""
    evaluator = guided_evaluator(target, statistics_loss=1.0, fade=0.0)
    mask, model, strict = flat_mask(target), target.model, evaluator.strict
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert isinstance(strict.forward_mode, StrictForward)
    assert evaluator.fitness(mask) == strict.fitness(mask) != evaluator.repaired.fitness(mask)
    assert evaluator.validate(mask) == strict.validate(mask)
    evaluator.score_gradient(mask, evaluator.draw_batch(8, seeded()))
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert hook_count(model) == 0
