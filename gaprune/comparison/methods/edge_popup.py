"""Edge-popup: gradient descent on scores over frozen pretrained weights, without evolution.

Ramanujan et al. 2020, eq. 4 and 5. Unlike the paper, the weights are trained, and the loss is the
distance from the dense network's outputs on generated calibration inputs, because there are no
labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gaprune.comparison.methods.training import DECAYS, check_descent
from gaprune.errors import GapruneError, InputError, unknown_name
from gaprune.evaluation.evaluator import Evaluator
from gaprune.masks.budget import keep_total, uniform_counts
from gaprune.masks.supermask import Layout, global_mask, layered_mask


@dataclass(frozen=True)
class EdgePopupOptions:
    """How scores are trained: learning rate, momentum and decay as in the paper.

    The paper ranks inside layers and starts from random scores, because its weights are random,
    too. For trained weights a global ranking and scores from the weights give far better masks, so
    they are the default: a baseline should be compared at its best.

    Attributes:
        scope: `global` ranks all scores together, `layer` keeps the same density in every layer
            (the paper).
        initial: a key of `INITIAL_SCORES`: `weights` (Sehwag et al. 2020) or `kaiming` (the paper).

    Raises:
        InputError: an unknown name, or a number outside its range.
    """

    steps: int = 1200  # of gradient descent, one fresh batch each
    batch: int = 256  # inputs per step
    learning_rate: float = 0.1  # at the start; it falls to 0 on a cosine
    momentum: float = 0.9  # of the gradient, as in `torch.optim.SGD`
    weight_decay: float = 1e-4  # pulls all scores towards 0
    scope: str = "global"
    initial: str = "weights"

    def __post_init__(self) -> None:
        if self.scope not in ("global", "layer"):
            raise unknown_name("scope", self.scope, ("global", "layer"))
        if self.initial not in INITIAL_SCORES:
            raise unknown_name("initial", self.initial, INITIAL_SCORES)
        for name, least in (("steps", 0), ("batch", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: must be at least {least}, got {getattr(self, name)}")
        check_descent(self.learning_rate, self.momentum, self.weight_decay)


def edge_popup(
    evaluator: Evaluator,
    sparsity: float,
    options: EdgePopupOptions,
    generator: torch.Generator,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Return the mask of the trained scores, flat bool `[total]`, exactly at the budget.

    Under a pattern of blocks or channels it has one value per unit; under N:M it keeps N of every
    group. The largest |score| are kept, so the straight-through gradient moves a score by
    −rate · sign(score) · w · ∂loss/∂(w·m), with momentum and weight decay.

    Args:
        evaluator: the dense network, the loss, and the source of fresh batches; stays unchanged.
        sparsity: fraction of weights to remove.
        options: steps, learning rate, scope and initial scores.
        generator: draws the initial scores and the calibration inputs.
        on_step: receives the number of steps done.

    Raises:
        InputError: the sparsity empties a layer, or the loss or network has no gradients.
        GapruneError: the gradient is not finite.
    """
    to_mask = _score_to_mask(evaluator.layout, sparsity, options.scope)
    scores = INITIAL_SCORES[options.initial](evaluator, generator)  # signed; |score| is ranked
    velocity = torch.zeros_like(scores)
    for step in range(options.steps):
        batch = evaluator.draw_batch(options.batch, generator)
        gradient = evaluator.score_gradient(to_mask(scores.abs()), batch)
        if not gradient.isfinite().all():
            raise GapruneError(
                f"edge-popup: the gradient is not finite at step {step + 1}, the network overflows "
                "on these calibration inputs; use other calibration inputs"
            )
        # chain rule of |score|
        gradient = (gradient * scores.sign()).add_(scores, alpha=options.weight_decay)
        velocity.mul_(options.momentum).add_(gradient)  # as torch.optim.SGD, without dampening
        if on_step is not None:
            on_step(step + 1)
        rate = options.learning_rate * DECAYS["cosine"](step / options.steps)
        scores.sub_(velocity, alpha=rate)
    return to_mask(scores.abs())


def _score_to_mask(layout: Layout, sparsity: float, scope: str) -> Callable[[Tensor], Tensor]:
    """Return the function from flat scores `[total]` to a flat bool mask."""
    n_of_m = layout.n_of_m
    if n_of_m is not None:
        return lambda scores: n_of_m.mask(scores, layout.slices, layout.shapes)
    if scope == "layer":
        counts = uniform_counts(layout, sparsity)
        return lambda scores: layered_mask(scores, layout, counts)
    keep = keep_total(layout, sparsity)
    return lambda scores: global_mask(scores, layout, keep)


def _kaiming(evaluator: Evaluator, generator: torch.Generator) -> Tensor:
    """Draw uniformly within ±1/√(fan in), the Kaiming bound for a = √5, as edge-popup does."""
    draws = [
        torch.empty(size).uniform_(-(fan**-0.5), fan**-0.5, generator=generator)
        for size, fan in zip(evaluator.layout.sizes, _fans_in(evaluator.layout), strict=True)
    ]
    return torch.cat(draws).to(next(iter(evaluator.network.weights.values())).device)


def _from_weights(evaluator: Evaluator, _generator: torch.Generator) -> Tensor:
    """Return √(6/fan in) · w / max |w| per layer (Sehwag et al. 2020, section 3.2).

    Under a pattern of units, each unit starts with the mean |score| of its weights.
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
"""Name → `(evaluator, generator)` → initial scores, flat float32 `[total]`."""
