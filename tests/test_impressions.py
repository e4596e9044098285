"""Class impressions: soft targets, and inputs that move the teacher towards them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import seeded, tiny_model
from torch import Tensor, nn
from torch.nn import functional

from gaprune.calibration.inversion.impressions import ImpressionOptions, impressions, soft_targets
from gaprune.errors import InputError
from gaprune.models.forward import batched_forward
from gaprune.models.input_spec import InputSpec


@given(st.integers(1, 40), st.integers(2, 12), st.integers(0, 999))
@settings(max_examples=30)
def test_soft_targets_are_distributions(count: int, classes: int, seed: int) -> None:
    """Rows are positive and sum to 1; the seed decides."""
    targets = soft_targets(count, classes, seeded(seed))
    assert targets.shape == (count, classes)
    assert (targets >= 0).all()
    assert torch.allclose(targets.sum(1), torch.ones(count), atol=1e-5)
    assert torch.equal(targets, soft_targets(count, classes, seeded(seed)))
    assert not torch.equal(targets, soft_targets(count, classes, seeded(seed + 1)))


def test_soft_targets_range_from_sure_to_undecided() -> None:
    """Some are nearly one-hot, others spread over the classes, and no class is preferred."""
    targets = soft_targets(2000, 10, seeded())
    sureness = targets.amax(1)
    assert (sureness > 0.99).double().mean().item() > 0.05
    assert (sureness < 0.4).double().mean().item() > 0.1
    assert targets.mean(0).tolist() == pytest.approx([0.1] * 10, abs=0.025)


def test_impressions_move_the_teacher_towards_their_targets() -> None:
    """The cross-entropy to the drawn targets falls, and every value stays in the unit range."""
    model, spec = tiny_model(), InputSpec((6,), "vector", low=-2, high=2)
    starts = torch.rand(64, 6, generator=seeded(1))
    before = starts.clone()
    made = impressions(model, spec, starts, seeded(5), ImpressionOptions(batch=64))
    targets = soft_targets(64, 4, seeded(5))

    def miss(unit: Tensor) -> float:
        log_outputs = functional.log_softmax(batched_forward(model, 4 * unit - 2), 1)
        return float(-(targets * log_outputs).sum(1).mean())

    assert miss(made) < 0.7 * miss(starts)
    assert made.shape == starts.shape
    assert 0 <= made.min().item() <= made.max().item() <= 1
    assert torch.equal(starts, before)
    assert not made.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_impressions_of_a_regressor_match_its_answers_on_other_inputs() -> None:
    """Without classes the targets are the teacher's own outputs, dealt anew."""
    model = nn.Sequential(tiny_model(), nn.Linear(4, 1)).requires_grad_(False)
    starts = torch.rand(64, 6, generator=seeded(1))
    spec = InputSpec((6,), "vector")
    made = impressions(model, spec, starts, seeded(5), ImpressionOptions(smoothness=0.0, batch=64))
    outputs = batched_forward(model, starts)
    targets = outputs[torch.randperm(64, generator=seeded(5))]
    error = (batched_forward(model, made) - targets).square().mean()
    assert error < 0.5 * (outputs - targets).square().mean()


def test_smooth_impressions_are_smoother() -> None:
    """The total-variation prior counts for pictures and signals."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).requires_grad_(False)
    for spec in (InputSpec((1, 8, 8), "image"), InputSpec((64,), "signal")):
        starts = torch.rand(16, *spec.shape, generator=seeded(1))
        rough, smooth = (
            impressions(
                model, spec, starts, seeded(5), ImpressionOptions(steps=20, smoothness=weight)
            )
            for weight in (0.0, 0.5)
        )
        assert smooth.diff(dim=-1).abs().mean() < 0.7 * rough.diff(dim=-1).abs().mean()


class Detached(nn.Linear):
    """A network that passes no gradient on."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


def test_networks_without_gradients_refuse_impressions() -> None:
    """The message says what to use."""
    spec = InputSpec((6,), "vector")
    with pytest.raises(InputError, match=r"passes gradients.*--calibration procedural"):
        impressions(Detached(6, 3), spec, torch.rand(2, 6), seeded())
