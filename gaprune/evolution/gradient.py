"""Gradient-informed mutation: a few straight-through steps on the scores, on fresh calibration inputs.

The gradient passes the top-k as if it were the identity (Ramanujan et al. 2020, eq. 4 and 5): a
score moves by −w · ∂L/∂(w·m). Here it is a mutation: short, with its own step length, judged by
selection like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor

from gaprune.evaluation.evaluator import Evaluator
from gaprune.evolution.genome import Genes, align
from gaprune.masks.supermask import global_mask, layer_counts
from gaprune.profiling import profiled


@dataclass(frozen=True)
class Refinement:
    """How long and how far.

    Attributes:
        steps: gradient steps, one batch each.
        learning_rate: Euclidean length of the first step in score ranks, before momentum.
        batch: inputs per step.
        momentum: of the normalised gradients.
        memory: decay of the average over the scores on the way; the average is what is returned.
        clip: a score's gradient is cut at so many root mean squares of all, or None. In deep
            networks a few weights of small kernels take the whole step otherwise; in shallow ones
            the largest gradients are what is worth following.
        last_rate: the length after the last step, reached evenly; None keeps the first.
        cosine: whether it is reached along half a cosine wave instead.
        fade: the parts of the steps after which repair begins to be left out and is left out, or
            None: candidates answer as they do on the evaluator.
    """

    steps: int
    learning_rate: float
    batch: int
    momentum: float = 0.9
    memory: float = 0.95
    clip: float | None = None
    last_rate: float | None = None
    cosine: bool = False
    fade: tuple[float, float] | None = None

    def length(self, step: int) -> float:
        """Return how long a step is, counted from 0."""
        last = self.learning_rate if self.last_rate is None else self.last_rate
        if self.cosine:
            return (
                self.learning_rate
                + (last - self.learning_rate) * (1 - cos(pi * step / self.steps)) / 2
            )
        return self.learning_rate + (last - self.learning_rate) * step / self.steps

    def at(self, step: int, evaluator: Evaluator) -> Evaluator:
        """Return the evaluator of a step, counted from 0: repair fades evenly from step to step."""
        if self.fade is None:
            return evaluator
        first, last = self.fade
        return evaluator.with_fade(min(1.0, max(0.0, (step / self.steps - first) / (last - first))))


def refine(
    genes: Genes, evaluator: Evaluator, plan: Refinement, generator: torch.Generator
) -> Genes:
    """Return genes whose scores have moved down the loss on fresh calibration inputs.

    Where layers have their own counts, the scores are aligned first, so that weights may move
    between layers under the exact total; genes of scope `layer` keep their counts.

    Raises:
        InputError: the objective has no loss to differentiate, or the network has no gradients.
    """
    genes = genes.wide().signed()
    genes = genes if genes.fixed else align(genes, evaluator.layout)
    scores = genes.scores.to(evaluator.device, copy=True)
    genes = genes.with_scores(scores)  # only one copy is held
    velocity, mean, weight = torch.zeros_like(scores), torch.zeros_like(scores), 0.0
    for step in range(plan.steps):
        with profiled("decode"):
            mask, now = _express(genes, scores, evaluator), plan.at(step, evaluator)
        with profiled("sample"):
            batch = now.draw_batch(plan.batch, generator)
        with profiled("gradient"):
            gradient = now.score_gradient(mask, batch)
        if plan.clip is not None:
            most = plan.clip * float(gradient.square().mean().sqrt())
            gradient.clamp_(-most, most)
        length = float(gradient.norm())
        if length > 0 and length < torch.inf:
            velocity.mul_(plan.momentum).add_(gradient, alpha=(1 - plan.momentum) / length)
        scores.sub_(velocity, alpha=plan.length(step))
        mean.mul_(plan.memory).add_(scores, alpha=1 - plan.memory)
        weight = plan.memory * weight + 1 - plan.memory
        del gradient, mask, batch  # before the next ones are made
    del scores, velocity
    return _settle(genes, mean.div_(weight).cpu(), evaluator)


def _express(genes: Genes, scores: Tensor, evaluator: Evaluator) -> Tensor:
    if genes.fixed:
        return genes.with_scores(scores).express(evaluator.layout)
    return global_mask(scores, evaluator.layout, genes.keep)


def _settle(genes: Genes, scores: Tensor, evaluator: Evaluator) -> Genes:
    """Put moved scores back into genes; free counts become those of the common ranking."""
    if genes.counts is None or genes.fixed:
        return genes.with_scores(scores)
    counts = layer_counts(global_mask(scores, evaluator.layout, genes.keep), evaluator.layout)
    return Genes(scores, tuple(counts), genes.keep)
