"""Guided gradient steps: the fade from repaired to strict, and the statistics loss.

Searches on repaired candidates are tested in `test_repair_in_loop.py`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from repair_networks import (
    REPAIRABLE,
    Convolutional,
    Encoder,
    Perceptron,
    calibration_for,
    hook_count,
    loop_evaluator,
    normed,
    random_masks,
    seeded,
    target_of,
)
from search_cases import random_genes
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from gaprune.evaluation.evaluator import Evaluator
from gaprune.evaluation.forward_modes import (
    GradientOutputs,
    GuidedForward,
    RepairedForward,
    StrictForward,
    TeacherBatch,
)
from gaprune.evolution.gradient import Refinement, refine
from gaprune.masks.supermask import masked_weights
from gaprune.models.target import Target
from gaprune.repair.channel_statistics import ChannelStatistics, statistics_loss

NETWORKS = {**REPAIRABLE, "layer norms": (Encoder, (5, 8))}


@pytest.fixture(params=NETWORKS)
def target(request: pytest.FixtureRequest) -> Target:
    """A float32 network with BatchNorm, with layer norms, or with biases alone."""
    return target_of(*NETWORKS[request.param], double=False)


def guided(target: Target, weight: float = 0.0, fade: float = 1.0, share: float = 1.0) -> Evaluator:
    """Return a guided evaluator; a batch comes from a pool, or part of it."""
    evaluator = loop_evaluator(target, gradient_share=share)
    assert isinstance(evaluator.forward_mode, RepairedForward)
    return replace(evaluator, forward_mode=GuidedForward(evaluator.forward_mode, weight, fade))


def flat_mask(target: Target, seed: int = 1) -> Tensor:
    """Return a random flat mask."""
    return target.layout.flatten(random_masks(target, seed=seed)).bool()


def stepped(
    evaluator: Evaluator, mask: Tensor, batch: TeacherBatch
) -> tuple[GradientOutputs, Tensor]:
    """Return what a candidate answers in a step, and the score gradient."""
    kept = masked_weights(evaluator.network.weights, evaluator.layout.split(mask))
    return evaluator.forward_mode.gradient_outputs(
        evaluator.network.model, kept, batch
    ), evaluator.score_gradient(mask, batch)


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_the_ends_of_the_fade_are_repair_and_the_strict_network(
    target: Target, weight: float
) -> None:
    """Bit for bit; without a statistics loss the gradients are equal too."""
    evaluator, mask = guided(target, weight), flat_mask(target)
    for fade, end in ((0.0, evaluator.repaired), (1.0, evaluator.strict)):
        one = evaluator.with_fade(fade)
        step, gradient = stepped(one, mask, one.draw_batch(20, seeded()))
        expected, steepest = stepped(end, mask, end.draw_batch(20, seeded()))
        assert torch.equal(step.outputs, expected.outputs)
        assert expected.penalty is None
        assert (step.penalty is None) == (weight == 0)
        assert torch.equal(gradient, steepest) == (weight == 0)


def test_in_between_each_site_is_corrected_in_part() -> None:
    """Of a network with one BatchNorm, written out by hand."""
    target = target_of(normed, (6,))
    evaluator, mask = guided(target), flat_mask(target)
    network, kept = target.model, masked_weights(target.weights, target.layout.split(mask))
    assert isinstance(network, Perceptron)
    batch = evaluator.with_fade(0.5).draw_batch(20, seeded())
    dense = batch.inputs @ network.fc1.weight.T + network.fc1.bias
    pruned = batch.inputs @ kept["fc1.weight"].T + network.fc1.bias
    matched = (pruned - pruned.mean(0)) * dense.std(0) / pruned.std(0) + dense.mean(0)
    for fade in (0.0, 0.3, 0.8, 1.0):
        hidden = torch.tanh(network.norm(fade * pruned + (1 - fade) * matched))
        hidden = torch.tanh(functional.linear(hidden, kept["fc2.weight"], network.fc2.bias))
        expected = functional.linear(hidden, kept["fc3.weight"], network.fc3.bias)
        step, _ = stepped(evaluator.with_fade(fade), mask, batch)
        assert torch.allclose(step.outputs, expected, rtol=1e-10)


def test_a_full_mask_has_no_statistics_loss(target: Target) -> None:
    """The penalty is 0, exactly, at any fade."""
    full = torch.ones(target.layout.total, dtype=torch.bool)
    for fade in (0.0, 0.4, 1.0):
        evaluator = guided(target, 2.0, fade)
        (_, penalty), _ = stepped(evaluator, full, evaluator.draw_batch(20, seeded()))
        assert penalty is not None
        assert penalty.item() == 0


def gaussians(maps: Tensor, least: float) -> Normal:
    """Return one Gaussian per channel of `[N, C, …]`, its variance enlarged."""
    flat = maps.transpose(0, 1).flatten(1)
    return Normal(flat.mean(1), (flat.var(1, correction=0) + least).sqrt())


def mean_statistics_loss(target: Target, mask: Tensor, inputs: Tensor) -> float:
    """Return the mean over both norms of `Convolutional` of the mean KL divergence of channels."""
    network, found = target.model, []
    assert isinstance(network, Convolutional)
    kept = masked_weights(target.weights, target.layout.split(mask))
    dense = pruned = inputs
    for conv, norm in (("conv1", network.bn1), ("conv2", network.bn2)):
        dense = functional.conv2d(dense, target.weights[f"{conv}.weight"], padding=1)
        pruned = functional.conv2d(pruned, kept[f"{conv}.weight"], padding=1)
        least = 1e-3 * dense.transpose(0, 1).flatten(1).var(1, correction=0).mean().item()
        apart = kl_divergence(gaussians(pruned, least), gaussians(dense, least))
        found.append(apart.mean().item())
        dense, pruned = norm(dense).relu(), norm(pruned).relu()
    return sum(found) / 2


@pytest.mark.parametrize("weight", [0.5, 3.0])
def test_the_penalty_is_the_mean_divergence_of_the_sites(weight: float) -> None:
    """Of Gaussians, strict candidate from dense network, by torch's own closed form."""
    target = target_of(Convolutional, (2, 6, 6))
    evaluator = guided(target, weight)
    for seed in (1, 2, 3):
        mask, batch = flat_mask(target, seed), evaluator.draw_batch(20, seeded(seed))
        (_, penalty), _ = stepped(evaluator, mask, batch)
        assert penalty is not None
        expected = weight * mean_statistics_loss(target, mask, batch.inputs)
        assert penalty.item() == pytest.approx(expected, rel=1e-9)
        assert expected > 0.01


def test_the_penalty_is_a_part_of_the_loss(target: Target) -> None:
    """What it adds to the score gradient is in proportion to its weight, and is not nothing."""
    mask, batch = flat_mask(target), guided(target, 1.0).draw_batch(20, seeded())
    none, once, thrice = (guided(target, w).score_gradient(mask, batch) for w in (0.0, 1.0, 3.0))
    added = once - none
    assert added.norm() > 1e-3 * none.norm()
    assert torch.allclose(thrice - none, 3 * added, rtol=1e-3, atol=1e-4 * float(added.norm()))


def test_constant_channels_have_no_statistics_loss() -> None:
    """Where the dense network does not move there is no unit, and the penalty stays finite."""
    still, moving = (
        ChannelStatistics(1, torch.ones(4), torch.zeros(4)),
        torch.ones(4, requires_grad=True),
    )
    assert statistics_loss(still, ChannelStatistics(1, moving, moving)).item() == 0
    partly = ChannelStatistics(9, torch.ones(4), torch.tensor([0.0, 1.0, 2.0, 1.0]))
    found = statistics_loss(partly, ChannelStatistics(9, moving, torch.zeros(4)))
    found.backward()
    assert found.isfinite()
    assert moving.grad is not None
    assert moving.grad.isfinite().all()
    evaluator, mask = guided(target_of(normed, (6,)), 1.0), flat_mask(target_of(normed, (6,)))
    assert evaluator.score_gradient(mask, evaluator.draw_batch(1, seeded())).isfinite().all()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("weight", "fade"), [(0.0, 0.5), (1.0, 1.0), (1.0, 0.0)])
def test_the_dense_network_runs_once_per_input(weight: float, fade: float, share: float) -> None:
    """One forward pass gives its outputs and statistics; the candidate's is the second."""
    target = target_of(normed, (6,))
    evaluator, sizes = guided(target, weight, fade, share), list[int]()
    hook = target.model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    batch = evaluator.draw_batch(20, seeded())
    found = evaluator.score_gradient(flat_mask(target), batch)
    hook.remove()
    assert sizes == [20, 20]
    assert torch.allclose(batch.teacher, target.model(batch.inputs), rtol=1e-12)
    bare = TeacherBatch(batch.inputs, batch.teacher, None)
    assert torch.equal(evaluator.score_gradient(flat_mask(target), bare), found)


def test_a_strict_step_without_a_penalty_measures_nothing(target: Target) -> None:
    """No statistics with the batch, no hook but the one that counts them."""
    evaluator, hooks = guided(target), list[int]()
    batch = evaluator.draw_batch(20, seeded())
    assert batch.dense is None
    for one in (evaluator, evaluator.with_fade(0.9)):
        hook = target.model.register_forward_pre_hook(
            lambda *_: hooks.append(hook_count(target.model))
        )
        one.score_gradient(flat_mask(target), batch)
        hook.remove()
    assert hooks[0] == 1
    assert hooks[-1] > 1


def test_guidance_does_not_change_the_inputs_drawn() -> None:
    """Held and fresh ones, in the same order."""
    evaluator = guided(target_of(normed, (6,)), 1.0, 0.5, share=0.5)
    batches = [
        one.draw_batch(16, seeded(4)).inputs
        for one in (evaluator, evaluator.strict, evaluator.repaired)
    ]
    assert torch.equal(batches[0], batches[1])
    assert torch.equal(batches[0], batches[2])


def test_guided_evaluators_score_the_strict_network(target: Target) -> None:
    """Fitness and validation score are those of the strict network."""
    evaluator, mask = guided(target, 1.0, 0.0), flat_mask(target)
    assert isinstance(evaluator.strict.forward_mode, StrictForward)
    assert (
        evaluator.fitness(mask)
        == evaluator.strict.fitness(mask)
        != evaluator.repaired.fitness(mask)
    )
    assert evaluator.validate(mask) == evaluator.strict.validate(mask)


def test_a_step_leaves_the_network_as_it_is(target: Target) -> None:
    """Weights, statistics, gradient switches and hooks."""
    evaluator = guided(target, 1.0, 0.5)
    before = {name: tensor.clone() for name, tensor in evaluator.network.model.state_dict().items()}
    evaluator.score_gradient(flat_mask(target), evaluator.draw_batch(8, seeded()))
    assert all(
        torch.equal(before[name], now) for name, now in evaluator.network.model.state_dict().items()
    )
    assert all(p.grad is None and not p.requires_grad for p in evaluator.network.model.parameters())
    assert hook_count(evaluator.network.model) == 0


def test_steps_with_a_penalty_end_nearer_to_the_dense_statistics() -> None:
    """On inputs that they have not seen, at the same budget and from the same start."""
    target = target_of(Convolutional, (2, 6, 6))
    held, plan = calibration_for(target, 64, 9), Refinement(steps=25, learning_rate=0.3, batch=32)
    genes = random_genes(target.layout, target.layout.total // 3, 1)
    ends = []
    for weight in (0.0, 3.0):
        refined = refine(genes, guided(target, weight), plan, seeded())
        ends.append(mean_statistics_loss(target, refined.decode(target.layout), held))
    start = mean_statistics_loss(target, genes.decode(target.layout), held)
    assert ends[1] < 0.8 * ends[0]
    assert ends[1] < 0.8 * start
