"""Gradient-informed mutation: straight-through gradient steps on the scores.

The gradient passes the top-k as if it were the identity (Ramanujan et al. 2020, eq. 4 and 5): a
score moves by −w · ∂L/∂(w·m). Here it is a mutation like any other: short, with a step length of
its own, and selection decides whether it helped.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi

import torch

from gaprune.evaluation.evaluator import Evaluator
from gaprune.evolution.genome import Genes, align
from gaprune.masks.supermask import global_mask, layer_counts
from gaprune.profiling import profiled


@dataclass(frozen=True)
class Refinement:
    """Number and length of gradient steps."""

    steps: int  # one batch each
    learning_rate: float  # Euclidean length of the first step in score ranks, before momentum
    batch: int  # inputs per step
    momentum: float = 0.9  # of the normalised gradients
    averaging: float = 0.95  # decay of the running average of the scores, which is the result
    # Maximum of a score's gradient in root mean squares of all gradients. In deep networks a few
    # weights of small kernels take the whole step otherwise; in shallow networks the largest
    # gradients are the useful ones.
    clip: float | None = None
    last_rate: float | None = None  # step length after the last step; None: `learning_rate`
    cosine: bool = False  # reach `last_rate` along half a cosine instead of linearly
    # fractions of the steps between which repair is faded out; None: the evaluator stays as it is
    fade: tuple[float, float] | None = None

    def step_length(self, step: int) -> float:
        """Return the length of a step, counted from 0."""
        first = self.learning_rate
        last = first if self.last_rate is None else self.last_rate
        if self.cosine:
            return first + (last - first) * (1 - cos(pi * step / self.steps)) / 2
        return first + (last - first) * step / self.steps

    def faded(self, step: int, evaluator: Evaluator) -> Evaluator:
        """Return the evaluator of a step, counted from 0: repair fades out linearly."""
        if self.fade is None:
            return evaluator
        first, last = self.fade
        return evaluator.with_fade(min(1.0, max(0.0, (step / self.steps - first) / (last - first))))


def refine(
    genes: Genes, evaluator: Evaluator, plan: Refinement, generator: torch.Generator
) -> Genes:
    """Return genes whose scores have descended the loss on batches of calibration inputs.

    Scores are aligned first, so that weights can move between layers under the exact total budget.
    Genes of scope `layer` keep the counts of their layers.

    Raises:
        InputError: the objective has no loss to differentiate, or the network has no gradients.
    """
    layout = evaluator.layout
    genes = genes.as_float32().signed()
    genes = genes if genes.fixed else align(genes, layout)
    scores = genes.scores.to(evaluator.device, copy=True)
    genes = genes.with_scores(scores)  # frees the scores before the copy: they are large
    velocity, mean, weight = torch.zeros_like(scores), torch.zeros_like(scores), 0.0
    for step in range(plan.steps):
        with profiled("decode"):
            mask = genes.decode(layout) if genes.fixed else global_mask(scores, layout, genes.keep)
            current = plan.faded(step, evaluator)
        with profiled("sample"):
            batch = current.draw_batch(plan.batch, generator)
        with profiled("gradient"):
            gradient = current.score_gradient(mask, batch)
        if plan.clip is not None:
            limit = plan.clip * float(gradient.square().mean().sqrt())
            gradient.clamp_(-limit, limit)
        norm = float(gradient.norm())
        # Normalised: the loss flattens as the search converges, and steps must not shrink with it.
        if 0 < norm < torch.inf:
            velocity.mul_(plan.momentum).add_(gradient, alpha=(1 - plan.momentum) / norm)
        scores.sub_(velocity, alpha=plan.step_length(step))
        # Polyak average of the trajectory, with the bias correction of Adam in `weight`.
        mean.mul_(plan.averaging).add_(scores, alpha=1 - plan.averaging)
        weight = plan.averaging * weight + 1 - plan.averaging
        del gradient, mask, batch  # frees them before the next ones are made
    averaged = mean.div_(weight) if plan.steps else scores
    del scores, velocity
    averaged = averaged.cpu()
    if genes.counts is None or genes.fixed:
        return genes.with_scores(averaged)
    counts = layer_counts(global_mask(averaged, layout, genes.keep), layout)
    return Genes(averaged, tuple(counts), genes.keep)
