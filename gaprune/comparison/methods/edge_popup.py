"""Edge-popup: gradient descent on scores over frozen pretrained weights, without evolution.

Ramanujan et al. 2020, eq. 4 and 5, with two changes. The weights are trained, and there are no
labels: the loss is the distance from the dense network's outputs on calibration inputs. The paper
ranks inside layers and starts from random scores, because its weights are random. For trained
weights a global ranking and scores from the weights give far better masks, so a baseline at its
best uses those.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gaprune.comparison.methods.training import DECAYS
from gaprune.errors import GapruneError
from gaprune.evaluation.evaluator import Evaluator
from gaprune.masks.budget import keep_total
from gaprune.masks.supermask import global_mask


@dataclass(frozen=True)
class EdgePopupOptions:
    """How scores are trained: learning rate, momentum and decay as in the paper."""

    steps: int = 1200  # of gradient descent, one fresh batch each
    batch: int = 256  # inputs per step
    learning_rate: float = 0.1  # at the start; it falls to 0 on a cosine
    momentum: float = 0.9  # of the gradient, as in `torch.optim.SGD`
    weight_decay: float = 1e-4  # pulls all scores towards 0


def edge_popup(
    evaluator: Evaluator,
    sparsity: float,
    options: EdgePopupOptions,
    generator: torch.Generator,
    on_step: Callable[[int], None] = lambda _steps: None,
) -> Tensor:
    """Return the mask of the trained scores, flat bool `[total]`, exactly at the budget.

    Under a pattern of blocks or channels it has one value per unit; under N:M it keeps N of every
    group. The largest |score| are kept, so the straight-through gradient moves a score by
    −rate · sign(score) · w · ∂loss/∂(w·m), with momentum and weight decay.

    Raises:
        InputError: the sparsity empties a layer, or the loss or network has no gradients.
        GapruneError: the gradient is not finite.
    """
    layout = evaluator.layout
    n_of_m, keep = layout.n_of_m, keep_total(layout, sparsity)

    def to_mask(scores: Tensor) -> Tensor:
        if n_of_m is not None:
            return n_of_m.mask(scores, layout.slices, layout.shapes)
        return global_mask(scores, layout, keep)

    scores = initial_scores(evaluator)  # signed; |score| is ranked
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
        on_step(step + 1)
        rate = options.learning_rate * DECAYS["cosine"](step / options.steps)
        scores.sub_(velocity, alpha=rate)
    return to_mask(scores.abs())


def initial_scores(evaluator: Evaluator) -> Tensor:
    """Return √(6/fan in) · w / max |w| per layer (Sehwag et al. 2020, section 3.2), flat `[total]`.

    Under a pattern of units, each unit starts with the mean |score| of its weights.
    """
    network = evaluator.network
    # fan in: how many inputs one output of a layer sums up; 1 for vectors
    fans = (math.prod(shape[1:]) for shape in network.layout.shapes)
    parts = [
        (fan / 6) ** -0.5 * weight.flatten().float() / weight.abs().max().float().clamp_min(1e-30)
        for weight, fan in zip(network.weights.values(), fans, strict=True)
    ]
    flat = torch.cat(parts)
    return flat if evaluator.units is None else evaluator.units.unit_mean(flat.abs())
