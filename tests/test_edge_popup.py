"""Edge-popup against torch's SGD on scores behind an autograd function."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from search_cases import seeded, tiny_evaluator
from torch import Tensor
from torch.func import functional_call

from gaprune.comparison.methods.edge_popup import EdgePopupOptions, edge_popup
from gaprune.errors import GapruneError, InputError
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evaluation.objectives import OBJECTIVES
from gaprune.masks.budget import keep_total

FAST = EdgePopupOptions(steps=60, batch=32, learning_rate=0.05)


class GetSubnet(torch.autograd.Function):
    """The largest scores as ones; the gradient passes unchanged."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, keep: int) -> Tensor:  # noqa: ANN401 - as in torch
        """Mark the `keep` largest."""
        mask = torch.zeros(scores.numel())
        mask[scores.flatten().topk(keep).indices] = 1
        return mask.view(scores.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 - as in torch
        """Pass the gradient on."""
        return grads[0], None


def as_in_the_paper(
    evaluator: Evaluator, sparsity: float, options: EdgePopupOptions, seed: int
) -> Tensor:
    """Train one score tensor per layer with torch's SGD and cosine schedule; return the mask."""
    generator = seeded(seed)
    scores = {
        name: (math.sqrt(6 / weight.shape[1]) * weight / weight.abs().max()).requires_grad_()
        for name, weight in evaluator.network.weights.items()
    }
    optimiser = torch.optim.SGD(
        scores.values(),
        options.learning_rate,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.steps)

    def subnets() -> dict[str, Tensor]:
        flat = torch.cat([tensor.abs().flatten() for tensor in scores.values()])
        whole = GetSubnet.apply(flat, keep_total(evaluator.layout, sparsity))  # type: ignore[no-untyped-call]
        return evaluator.layout.split(whole)

    assert evaluator.objective.loss is not None
    for _ in range(options.steps):
        batch = evaluator.draw_batch(options.batch, generator)
        weights = {
            name: evaluator.network.weights[name] * subnet for name, subnet in subnets().items()
        }
        outputs = functional_call(evaluator.network.model, weights, (batch.inputs,))
        optimiser.zero_grad()
        evaluator.objective.loss(outputs, batch.teacher, batch.labels).backward()
        optimiser.step()
        schedule.step()
    return evaluator.layout.flatten(subnets()).bool()


def test_it_is_edge_popup() -> None:
    """The mask equals that of torch's SGD with a straight-through gradient; its budget is exact."""
    evaluator = tiny_evaluator()
    options = EdgePopupOptions(steps=20, batch=16, learning_rate=0.02, weight_decay=0.01)
    expected = as_in_the_paper(evaluator, 0.6, options, seed=4)
    mask = edge_popup(evaluator, 0.6, options, seeded(4))
    assert int((mask ^ expected).sum()) <= 2  # sums in another order may swap a pair
    assert int(mask.sum()) == keep_total(evaluator.layout, 0.6)
    start = edge_popup(evaluator, 0.6, replace(options, steps=0), seeded(4))
    assert int((mask ^ start).sum()) > 10


def test_training_the_scores_lowers_the_loss() -> None:
    """The trained mask is better on unseen inputs than the initial one."""
    evaluator = tiny_evaluator()
    trained, untrained = (
        evaluator.fitness(edge_popup(evaluator, 0.5, replace(FAST, steps=steps), seeded()))
        for steps in (150, 0)
    )
    assert trained > 0.6 * untrained


def test_the_seed_decides() -> None:
    """Same generator, same bits; the network and the global random state stay."""
    evaluator, state = tiny_evaluator(), torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in evaluator.network.model.state_dict().items()}
    first, again, other = (edge_popup(evaluator, 0.5, FAST, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(before[name], now) for name, now in evaluator.network.model.state_dict().items()
    )
    assert all(p.grad is None and not p.requires_grad for p in evaluator.network.model.parameters())


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    """The error gives the step."""
    evaluator = tiny_evaluator(gradient_share=1)
    assert evaluator.gradient_inputs is not None
    evaluator = replace(
        evaluator,
        gradient_inputs=evaluator.gradient_inputs._replace(
            inputs=evaluator.gradient_inputs.inputs * float("nan")
        ),
    )
    with pytest.raises(GapruneError, match="step 1"):
        edge_popup(evaluator, 0.5, FAST, seeded())


def test_a_black_box_is_refused() -> None:
    """Edge-popup needs a differentiable objective."""
    evaluator = tiny_evaluator(replace(OBJECTIVES["kl"], name="mine.py:score", loss=None))
    with pytest.raises(InputError, match=r"mine\.py"):
        edge_popup(evaluator, 0.5, FAST, seeded())
