"""Edge-popup against the paper's own form: torch's SGD on scores behind an autograd function."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from search_cases import seeded, tiny_evaluator
from torch import Tensor, nn
from torch.func import functional_call

from gaprune.comparison.methods.edge_popup import INITIAL_SCORES, EdgePopupOptions, edge_popup
from gaprune.errors import GapruneError, InputError
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evaluation.objectives import OBJECTIVES
from gaprune.masks.budget import keep_total, uniform_counts
from gaprune.masks.supermask import layer_counts

SCOPES = ["layer", "global"]
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
    evaluator: Evaluator, sparsity: float, how: EdgePopupOptions, seed: int
) -> Tensor:
    """Train one score tensor per layer with torch's SGD and cosine schedule; return the mask."""
    generator = seeded(seed)
    scores = {name: torch.empty(weight.shape) for name, weight in evaluator.network.weights.items()}
    for name, tensor in scores.items():
        if how.initial == "kaiming":
            nn.init.kaiming_uniform_(tensor, a=math.sqrt(5), generator=generator)
        else:
            weight = evaluator.network.weights[name]
            tensor.copy_(math.sqrt(6 / weight.shape[1]) * weight / weight.abs().max())
        tensor.requires_grad_()
    optimiser = torch.optim.SGD(
        scores.values(), how.learning_rate, momentum=how.momentum, weight_decay=how.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, how.steps)

    def subnets() -> dict[str, Tensor]:
        if how.scope == "layer":
            counts = uniform_counts(evaluator.layout, sparsity)
            kept = zip(scores.items(), counts, strict=True)
            return {n: GetSubnet.apply(s.abs(), keep) for (n, s), keep in kept}  # type: ignore[no-untyped-call]
        flat = torch.cat([tensor.abs().flatten() for tensor in scores.values()])
        whole = GetSubnet.apply(flat, keep_total(evaluator.layout, sparsity))  # type: ignore[no-untyped-call]
        return evaluator.layout.split(whole)

    assert evaluator.objective.loss is not None
    for _ in range(how.steps):
        batch = evaluator.draw_batch(how.batch, generator)
        kept = {
            name: evaluator.network.weights[name] * subnet for name, subnet in subnets().items()
        }
        outputs = functional_call(evaluator.network.model, kept, (batch.inputs,))
        optimiser.zero_grad()
        evaluator.objective.loss(outputs, batch.teacher, batch.labels).backward()
        optimiser.step()
        schedule.step()
    return evaluator.layout.flatten(subnets()).bool()


@pytest.mark.parametrize("initial", INITIAL_SCORES)
@pytest.mark.parametrize("scope", SCOPES)
def test_it_is_edge_popup(scope: str, initial: str) -> None:
    """The mask of torch's optimiser on scores behind the paper's straight-through function."""
    evaluator = tiny_evaluator()
    how = EdgePopupOptions(
        steps=20, batch=16, learning_rate=0.02, weight_decay=0.01, scope=scope, initial=initial
    )
    expected = as_in_the_paper(evaluator, 0.6, how, seed=4)
    mask = edge_popup(evaluator, 0.6, how, seeded(4))
    assert int((mask ^ expected).sum()) <= 2  # sums in another order may swap a pair
    start = edge_popup(evaluator, 0.6, replace(how, steps=0), seeded(4))
    assert int((mask ^ start).sum()) > 10


@pytest.mark.parametrize("initial", INITIAL_SCORES)
@pytest.mark.parametrize("scope", SCOPES)
def test_the_budget_is_exact(scope: str, initial: str) -> None:
    """The total as asked; in scope layer every layer has the same density."""
    evaluator = tiny_evaluator()
    how = replace(FAST, steps=5, scope=scope, initial=initial)
    for sparsity in (0.3, 0.77, 0.95):
        mask = edge_popup(evaluator, sparsity, how, seeded())
        assert mask.dtype == torch.bool
        assert int(mask.sum()) == keep_total(evaluator.layout, sparsity)
        counts = layer_counts(mask, evaluator.layout)
        assert min(counts) >= 1
        assert scope == "global" or counts == uniform_counts(evaluator.layout, sparsity)


@pytest.mark.parametrize("initial", INITIAL_SCORES)
@pytest.mark.parametrize("scope", SCOPES)
def test_training_the_scores_lowers_the_loss(scope: str, initial: str) -> None:
    """The trained mask is clearly better on unseen calibration inputs than the one it starts from."""
    evaluator = tiny_evaluator()
    how = replace(FAST, steps=150, scope=scope, initial=initial)
    trained = evaluator.fitness(edge_popup(evaluator, 0.5, how, seeded()))
    assert trained > 0.6 * evaluator.fitness(
        edge_popup(evaluator, 0.5, replace(how, steps=0), seeded())
    )


def test_scores_from_weights_start_as_magnitude_inside_layers() -> None:
    """Without a step, scope layer keeps the largest weights of each layer."""
    evaluator = tiny_evaluator()
    how = EdgePopupOptions(steps=0, scope="layer")
    mask = evaluator.layout.split(edge_popup(evaluator, 0.7, how, seeded()))
    for name, weight in evaluator.network.weights.items():
        smallest_kept = weight.abs()[mask[name]].min()
        assert smallest_kept > weight.abs()[~mask[name]].max()


def test_the_seed_decides_and_nothing_else_moves() -> None:
    """Same generator, same bits; the network and the global state stay."""
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


def test_layers_of_zeros_and_vectors_have_finite_first_scores() -> None:
    """A dead layer and a prunable bias do not divide by zero."""
    evaluator = tiny_evaluator()
    model = evaluator.network.model.requires_grad_(False)
    model.get_parameter("2.weight").zero_()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    layout = type(evaluator.layout).of(weights)
    network = replace(evaluator.network, weights=weights, layout=layout)
    evaluator = replace(evaluator, network=network, layout=layout)
    for initial in INITIAL_SCORES:
        scores = INITIAL_SCORES[initial](evaluator, seeded())
        assert scores.isfinite().all()
        mask = edge_popup(evaluator, 0.5, replace(FAST, steps=3, initial=initial), seeded())
        assert int(mask.sum()) == keep_total(evaluator.layout, 0.5)


def test_calibration_that_overflow_are_an_error() -> None:
    """The message says at which step, and the way out."""
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
    """There must be a loss to differentiate."""
    evaluator = tiny_evaluator(replace(OBJECTIVES["kl"], name="mine.py:score", loss=None))
    with pytest.raises(InputError, match=r"mine\.py"):
        edge_popup(evaluator, 0.5, FAST, seeded())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scope": "allocated"}, "scope: .*'allocated'"),
        ({"initial": "weight"}, "'weights'"),
        ({"steps": -1}, "steps: .*-1"),
        ({"batch": 0}, "batch: .*0"),
        ({"learning_rate": 0}, "learning_rate: .*0"),
        ({"momentum": 1}, "momentum: .*1"),
        ({"weight_decay": math.nan}, "weight_decay: .*nan"),
    ],
)
def test_settings_outside_their_range_are_refused(change: dict[str, Any], message: str) -> None:
    """Each setting has its rule."""
    with pytest.raises(InputError, match=message):
        EdgePopupOptions(**change)


def test_a_sparsity_that_empties_a_layer_is_refused() -> None:
    """In scope layer the small layer is named."""
    with pytest.raises(InputError, match=r"'4\.weight'"):
        edge_popup(tiny_evaluator(), 0.985, replace(FAST, scope="layer"), seeded())
