"""Gradient-informed mutation against a supermask of autograd's own, and what it must not touch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from search_cases import random_genes, seeded, tiny_evaluator, tiny_model
from torch import Tensor, nn
from torch.func import functional_call

from gaprune.errors import InputError
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evaluation.objectives import OBJECTIVES
from gaprune.evolution.genome import Genes, align
from gaprune.evolution.gradient import Refinement, refine
from gaprune.masks.supermask import Layout, global_mask, layer_counts, layered_mask

SCOPES = ["allocated", "global", "layer"]


STEPS = Refinement(steps=4, learning_rate=0.5, batch=16)


class IdentityBackward(torch.autograd.Function):
    """Scores forward to a given mask; the gradient passes to the scores unchanged."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, mask: Tensor) -> Tensor:  # noqa: ANN401 - as in torch
        return mask.to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 - as in torch
        """Pass the gradient on."""
        return grads[0], None


def steps_by_autograd(genes: Genes, evaluator: Evaluator, plan: Refinement, seed: int) -> Tensor:
    """Return the averaged scores after the steps, written with autograd and plain sums."""
    layout, generator = evaluator.layout, seeded(seed)
    scores = (genes if genes.fixed else align(genes, layout)).scores.clone()
    velocity, path = torch.zeros_like(scores), []
    assert evaluator.objective.loss is not None
    last = plan.learning_rate if plan.last_rate is None else plan.last_rate
    for step in range(plan.steps):
        if genes.fixed:
            mask = layered_mask(scores, layout, genes.counts or ())
        else:
            mask = global_mask(scores, layout, genes.keep)
        batch = evaluator.draw_batch(plan.batch, generator)
        leaf = scores.clone().requires_grad_()
        soft = layout.split(IdentityBackward.apply(leaf, mask))  # type: ignore[no-untyped-call]
        kept = {name: weight * soft[name] for name, weight in evaluator.network.weights.items()}
        outputs = functional_call(evaluator.network.model, kept, (batch.inputs,))
        evaluator.objective.loss(outputs, batch.teacher, batch.labels).backward()
        assert leaf.grad is not None
        root = float(leaf.grad.square().mean().sqrt())
        most = float("inf") if plan.clip is None else plan.clip * root
        gradient = leaf.grad.clamp(-most, most)
        velocity = plan.momentum * velocity + (1 - plan.momentum) * gradient / gradient.norm()
        part = step / plan.steps
        scores = scores - ((1 - part) * plan.learning_rate + part * last) * velocity
        path.append(scores)
    weights = [plan.averaging ** (len(path) - 1 - i) for i in range(len(path))]
    return torch.stack([w * s for w, s in zip(weights, path, strict=True)]).sum(0) / sum(weights)


@pytest.mark.parametrize("scope", SCOPES)
def test_no_steps_leave_the_mask_as_it_is(scope: str) -> None:
    """A dry run times a child without its steps so."""
    evaluator = tiny_evaluator()
    genes = random_genes(evaluator.layout, 60, 1, scope)
    refined = refine(genes, evaluator, replace(STEPS, steps=0), seeded())
    assert torch.equal(refined.decode(evaluator.layout), genes.decode(evaluator.layout))


@pytest.mark.parametrize("plan", [STEPS, replace(STEPS, clip=1.0), replace(STEPS, last_rate=0.1)])
@pytest.mark.parametrize("gradient_share", [None, 0.5, 1])
@pytest.mark.parametrize("scope", SCOPES)
def test_steps_follow_the_straight_through_gradient(
    scope: str, gradient_share: float | None, plan: Refinement
) -> None:
    """Scores move as autograd says for a mask whose backward pass is the identity."""
    evaluator = tiny_evaluator(gradient_share=gradient_share)
    genes = random_genes(evaluator.layout, 60, 1, scope)
    expected = steps_by_autograd(genes, evaluator, plan, seed=9)
    found = refine(genes, evaluator, plan, seeded(9))
    assert torch.allclose(found.scores, expected, atol=1e-5)
    assert not torch.allclose(found.scores, align(genes, evaluator.layout).scores, atol=1e-2)


@pytest.mark.parametrize("objective", ["kl", "accuracy", "relative-error"])
@pytest.mark.parametrize("scope", SCOPES)
def test_refinement_lowers_the_loss_on_its_calibration(scope: str, objective: str) -> None:
    """On the held inputs that it steps on, the refined mask has a clearly smaller loss."""
    evaluator = tiny_evaluator(objective, gradient_share=1, labels=True)
    genes = random_genes(evaluator.layout, 60, 1, scope)
    refined = refine(genes, evaluator, Refinement(steps=60, learning_rate=0.3, batch=32), seeded())

    def loss(one: Genes) -> float:
        assert evaluator.gradient_inputs is not None
        assert evaluator.objective.loss is not None
        outputs = evaluator.outputs(one.decode(evaluator.layout), evaluator.gradient_inputs.inputs)
        batch = evaluator.gradient_inputs
        return float(evaluator.objective.loss(outputs, batch.teacher, batch.labels))

    assert loss(refined) < 0.7 * loss(genes)


@pytest.mark.parametrize("scope", SCOPES)
def test_refinement_keeps_budget_scope_weights_and_parent(scope: str) -> None:
    """Exactly as many weights stay, fixed counts stay per layer, and no bit moves elsewhere."""
    evaluator = tiny_evaluator(gradient_share=0.5)
    genes = random_genes(evaluator.layout, 60, 1, scope)
    before = {name: tensor.clone() for name, tensor in evaluator.network.model.state_dict().items()}
    scores = genes.scores.clone()

    refined = refine(genes, evaluator, Refinement(steps=10, learning_rate=1.0, batch=16), seeded())

    mask = refined.decode(evaluator.layout)
    assert int(mask.count_nonzero()) == refined.keep == genes.keep
    assert refined.fixed == genes.fixed
    if scope == "layer":
        assert refined.counts == genes.counts
    else:
        found = None if scope == "global" else tuple(layer_counts(mask, evaluator.layout))
        assert refined.counts == found
    assert torch.equal(genes.scores, scores)
    assert all(
        torch.equal(before[name], now) for name, now in evaluator.network.model.state_dict().items()
    )
    assert all(p.grad is None and not p.requires_grad for p in evaluator.network.model.parameters())
    assert not evaluator.network.model.training


def test_the_generator_alone_decides_which_inputs_are_drawn() -> None:
    """Equal seeds give equal bits; torch's own generator is neither used nor moved."""
    evaluator, plan = tiny_evaluator(), Refinement(steps=3, learning_rate=0.5, batch=8)
    genes, state = random_genes(evaluator.layout, 60, 1), torch.get_rng_state()
    first, second, other = (refine(genes, evaluator, plan, seeded(s)).scores for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_sizes_become_signed_scores_before_they_move() -> None:
    """Genes that rank |score| are refined as signed genes of the same mask."""
    evaluator, plan = tiny_evaluator(), Refinement(steps=3, learning_rate=0.5, batch=8)
    genes = random_genes(evaluator.layout, 60, 1)
    sizes = replace(genes, scores=genes.scores - 0.3, absolute=True)
    refined = refine(sizes, evaluator, plan, seeded(1))
    assert not refined.absolute
    assert torch.equal(refined.scores, refine(sizes.signed(), evaluator, plan, seeded(1)).scores)


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    """Scores stay finite and the mask unchanged if the network overflows on some inputs."""
    evaluator = tiny_evaluator(gradient_share=1)
    assert evaluator.gradient_inputs is not None
    overflowing = evaluator.gradient_inputs.inputs * float("nan")
    batch = evaluator.gradient_inputs._replace(inputs=overflowing)
    evaluator = replace(evaluator, gradient_inputs=batch)
    genes = random_genes(evaluator.layout, 60, 1)
    refined = refine(genes, evaluator, Refinement(steps=3, learning_rate=0.5, batch=8), seeded(1))
    assert refined.scores.isfinite().all()
    assert torch.equal(refined.decode(evaluator.layout), genes.decode(evaluator.layout))


def test_a_black_box_is_refused() -> None:
    """An objective without a loss cannot steer gradients; the message names the way out."""
    black_box = replace(OBJECTIVES["kl"], name="mine.py:score", loss=None)
    evaluator = tiny_evaluator(black_box)
    genes = random_genes(evaluator.layout, 60, 1)
    with pytest.raises(InputError, match=r"mine\.py:score.*black box.*preset='black-box'"):
        refine(genes, evaluator, Refinement(1, 0.5, 8), seeded())


class OwnPath(nn.Module):
    """A network with a layer that it does not use, and on demand without gradients."""

    def __init__(self, *, detached: bool) -> None:
        super().__init__()
        self.inner, self.unused, self.detached = tiny_model(), nn.Linear(5, 4), detached

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.inner(x)
        return outputs.detach() if self.detached else outputs


def user_evaluator(*, detached: bool) -> Evaluator:
    """Return an evaluator around `OwnPath`; the unused layer is prunable."""
    model = OwnPath(detached=detached).requires_grad_(False)
    weights = {name: p.detach() for name, p in model.named_parameters() if p.ndim > 1}
    layout, evaluator = Layout.of(weights), tiny_evaluator()
    network = replace(evaluator.network, model=model, weights=weights, layout=layout)
    return replace(evaluator, network=network, layout=layout)


def test_a_layer_that_is_not_used_has_gradient_zero() -> None:
    """Its scores stay where alignment put them, the others move."""
    evaluator = user_evaluator(detached=False)
    genes = random_genes(evaluator.layout, 60, 1)
    refined = refine(genes, evaluator, Refinement(3, 0.5, 8), seeded())
    unused = evaluator.layout.slices[evaluator.layout.names.index("unused.weight")]
    moved = refined.scores - align(genes, evaluator.layout).scores
    assert moved[unused].abs().max().item() < 1e-6
    assert moved.norm().item() > 0.05


def test_a_network_without_gradients_is_refused() -> None:
    """The message says why and names the way out."""
    evaluator = user_evaluator(detached=True)
    with pytest.raises(InputError, match=r"no gradient.*preset='black-box'"):
        refine(random_genes(evaluator.layout, 60, 1), evaluator, Refinement(1, 0.5, 8), seeded())


def test_float64_networks_are_refined_too() -> None:
    """Scores are float32 whatever the network computes in."""
    evaluator = tiny_evaluator(gradient_share=1)
    model = tiny_model(dtype=torch.float64)
    weights = {name: p.detach() for name, p in model.named_parameters() if p.ndim > 1}
    assert evaluator.gradient_inputs is not None
    pool = evaluator.gradient_inputs._replace(
        inputs=evaluator.gradient_inputs.inputs.double(),
        teacher=evaluator.gradient_inputs.teacher.double(),
    )
    genes = random_genes(evaluator.layout, 60, 1)
    plan = Refinement(steps=3, learning_rate=0.5, batch=8)
    network = replace(evaluator.network, model=model, weights=weights)
    double = replace(evaluator, network=network, gradient_inputs=pool)
    wide = refine(genes, double, plan, seeded(1))
    assert wide.scores.dtype == torch.float32
    assert torch.allclose(wide.scores, refine(genes, evaluator, plan, seeded(1)).scores, atol=1e-4)
