"""Edge-popup alone: gradient descent on scores over frozen pretrained weights, no evolution.

Ramanujan et al. 2020, eq. 4 and 5. What differs from the paper: the weights are trained ones, and
the loss is the distance from the dense network's answers on generated calibration inputs, since there are no
labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gaprune.comparison.methods.training import DECAYS
from gaprune.errors import GapruneError, InputError, unknown_name
from gaprune.evaluation.evaluator import Evaluator
from gaprune.masks.budget import keep_total, uniform_counts
from gaprune.masks.supermask import Layout, global_mask, layered_mask


@dataclass(frozen=True)
class EdgePopupOptions:
    """How scores are trained: rate, momentum and decay as in the paper, the rest as it does best.

    The paper ranks inside layers and starts from random scores, for its weights are random too.
    Over trained weights a common ranking and scores from the weights give far better masks, so
    they are the default: a baseline is compared at its best.

    Attributes:
        steps: of gradient descent, one fresh batch each.
        batch: inputs per step.
        learning_rate: at the start; it falls to 0 on a cosine.
        momentum: of the gradient, as in `torch.optim.SGD`.
        weight_decay: pull of all scores towards 0.
        scope: `global` ranks all scores together, `layer` keeps the same density in every layer
            (the paper).
        initial: a key of `INITIAL_SCORES`: `weights` (Sehwag et al. 2020) or `kaiming` (the paper).

    Raises:
        InputError: an unknown name, or a number outside its range.
    """

    steps: int = 1200
    batch: int = 256
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    scope: str = "global"
    initial: str = "weights"

    def __post_init__(self) -> None:
        if self.scope not in _EXPRESSED:
            raise unknown_name("scope", self.scope, _EXPRESSED)
        if self.initial not in INITIAL_SCORES:
            raise unknown_name("initial", self.initial, INITIAL_SCORES)
        for name, least in (("steps", 0), ("batch", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"rate: must be above 0 and finite, got {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum: must be 0 or more and below 1, got {self.momentum}")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"weight_decay: must be 0 or more, got {self.weight_decay}")


def edge_popup(
    evaluator: Evaluator,
    sparsity: float,
    how: EdgePopupOptions,
    generator: torch.Generator,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Return the mask of the trained scores, flat bool `[total]`, exactly at the budget.

    Under a pattern of units it is theirs; under N:M it keeps N of every group.

    The largest |score| stay, so a score moves by −rate · sign(score) · w · ∂loss/∂(w·m), with
    momentum and decay.

    Args:
        evaluator: the dense network, the loss, and the source of fresh batches; it stays as it is.
        sparsity: fraction of weights to remove.
        how: steps, rate, scope and first scores.
        generator: draws the first scores and the calibration inputs.
        on_step: is told the steps done.

    Raises:
        InputError: the sparsity empties a layer, or the loss or network has no gradients.
        GapruneError: the gradient is not finite.
    """
    express = _EXPRESSED[how.scope](evaluator.layout, sparsity)
    scores = INITIAL_SCORES[how.initial](evaluator, generator)
    velocity = torch.zeros_like(scores)
    for step in range(how.steps):
        shown = evaluator.draw_batch(how.batch, generator)
        gradient = evaluator.score_gradient(express(scores.abs()), shown)
        if not gradient.isfinite().all():
            raise GapruneError(
                f"edge-popup: the gradient is not finite at step {step + 1}, the network overflows "
                "on these calibration inputs; use other calibration inputs"
            )
        gradient = (gradient * scores.sign()).add_(scores, alpha=how.weight_decay)
        velocity.mul_(how.momentum).add_(gradient)
        if on_step is not None:
            on_step(step + 1)
        scores.sub_(velocity, alpha=how.learning_rate * DECAYS["cosine"](step / how.steps))
    return express(scores.abs())


Express = Callable[[Tensor], Tensor]
"""Flat scores `[total]` → flat bool mask."""


def _each_layer(layout: Layout, sparsity: float) -> Express:
    if layout.n_of_m is not None:
        return _under_quota(layout)
    counts = uniform_counts(layout, sparsity)
    return lambda scores: layered_mask(scores, layout, counts)


def _over_all(layout: Layout, sparsity: float) -> Express:
    if layout.n_of_m is not None:
        return _under_quota(layout)
    keep = keep_total(layout, sparsity)
    return lambda scores: global_mask(scores, layout, keep)


def _under_quota(layout: Layout) -> Express:
    quota = layout.n_of_m
    assert quota is not None
    return lambda scores: quota.mask(scores, layout.slices, layout.shapes)


_EXPRESSED: dict[str, Callable[[Layout, float], Express]] = {
    "layer": _each_layer,
    "global": _over_all,
}


def _kaiming(evaluator: Evaluator, generator: torch.Generator) -> Tensor:
    """Draw uniformly within ±1/√(fan in), the Kaiming bound for a = √5, as edge-popup does."""
    draws = [
        torch.empty(size).uniform_(-bound, bound, generator=generator)
        for size, bound in zip(
            evaluator.layout.sizes, (fan**-0.5 for fan in _fans_in(evaluator.layout)), strict=True
        )
    ]
    return torch.cat(draws).to(next(iter(evaluator.network.weights.values())).device)


def _from_weights(evaluator: Evaluator, _generator: torch.Generator) -> Tensor:
    """Return √(6/fan in) · w / max |w| in each layer (Sehwag et al. 2020, section 3.2).

    The units of a pattern begin with the mean size of these.
    """
    layout = evaluator.network.layout
    parts = [
        (fan / 6) ** -0.5 * weight.flatten().float() / weight.abs().max().float().clamp_min(1e-30)
        for weight, fan in zip(evaluator.network.weights.values(), _fans_in(layout), strict=True)
    ]
    flat = torch.cat(parts)
    return flat if evaluator.units is None else evaluator.units.unit_mean(flat.abs())


def _fans_in(layout: Layout) -> list[int]:
    """Return how many inputs one output of each layer sums up; 1 for vectors."""
    return [math.prod(shape[1:]) for shape in layout.shapes]


INITIAL_SCORES: dict[str, Callable[[Evaluator, torch.Generator], Tensor]] = {
    "kaiming": _kaiming,
    "weights": _from_weights,
}
"""Name → `(evaluator, generator)` → first scores, flat float32 `[total]`."""
