"""Methods that change the weights: pruning with fine-tuning, with labels or on calibration inputs, slimming."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from math import prod

import torch

from gaprune.comparison.context import ComparisonContext, MethodFunction, MethodResult, part_name
from gaprune.comparison.methods.iterative import IterativePruningOptions, prune_iteratively
from gaprune.comparison.methods.schedule import SCHEDULES, PruningStep
from gaprune.comparison.methods.slimming import SlimmingOptions, slim_to
from gaprune.comparison.methods.training import TrainingData, from_labels, from_teacher

TAUGHT_ON_CALIBRATION = 32768  # generated inputs that stand for a training set
MOST_VALUES = 2**28  # of all of them together: large images must fit into memory


def finetuned(schedule: str, *, rewind: bool = False) -> MethodFunction:
    """Return iterative magnitude pruning with fine-tuning on the training set."""

    def run(
        context: ComparisonContext, sparsities: Sequence[float], seed: int
    ) -> Iterator[MethodResult]:
        data = from_labels(context.training_samples())
        steps = SCHEDULES[schedule](sparsities, context.epochs)
        generator = context.generator("comparison", "finetuned", seed)
        name = part_name(f"imp-{'rewind' if rewind else schedule}", seed)
        yield from _follow(context, data, steps, generator, name, rewind=rewind)

    return run


def by_own_schedule(
    context: ComparisonContext, sparsities: Sequence[float], seed: int
) -> Iterator[MethodResult]:
    """Follow the user's own (sparsity, epochs) pairs; a `ComparisonSpec` has seen to it that they fit."""
    generator = context.generator("comparison", "finetuned", seed)
    data = from_labels(context.training_samples())
    yield from _follow(context, data, context.schedule, generator, part_name("imp-schedule", seed))


def distilled(
    context: ComparisonContext, sparsities: Sequence[float], seed: int
) -> Iterator[MethodResult]:
    """Prune and fine-tune on calibration inputs, towards what the dense network answers: no data."""
    plan = context.plan(seed)
    generator = context.generator("comparison", "distilled", seed)
    if plan.mixture is None:
        assert plan.gradient_inputs is not None  # a plan has one or the other
        inputs = plan.gradient_inputs.inputs
    else:
        most = max(1, MOST_VALUES // prod(context.target.inputs.shape))
        inputs = plan.mixture.draw(min(TAUGHT_ON_CALIBRATION, most), generator)
    data = from_teacher(context.target, inputs)
    steps = SCHEDULES["linear"](sparsities, context.epochs)
    yield from _follow(context, data, steps, generator, part_name("distilled", seed))


def slimmed(
    context: ComparisonContext, sparsities: Sequence[float], seed: int
) -> Iterator[MethodResult]:
    """Remove channels of small γ physically until so many weights are gone, then fine-tune."""
    data = from_labels(context.training_samples())
    for sparsity in sparsities:
        generator = context.generator("comparison", "slimming", seed)
        how = SlimmingOptions(epochs=context.epochs, training=context.training)
        name = f"{part_name('slimming', seed, sparsity)}, epoch"
        report = partial(context.observer.progress, name, total=how.rounds * how.epochs)
        rounds = slim_to(context.target, sparsity, data, how, generator, on_epoch=report)
        last = deque(rounds, maxlen=1)[0]
        yield MethodResult(sparsity, last.model, last.after.prunable, epochs=last.epochs)


def _follow(  # what a path depends on
    context: ComparisonContext,
    data: TrainingData,
    steps: Sequence[PruningStep],
    generator: torch.Generator,
    name: str,
    *,
    rewind: bool = False,
) -> Iterator[MethodResult]:
    """Hand in the network of every step; the caller takes those that it asked for."""
    total = sum(step.epochs for step in steps)
    stages = prune_iteratively(
        context.target,
        data,
        steps,
        IterativePruningOptions(context.training, rewind=rewind),
        generator,
        on_epoch=lambda done: context.observer.progress(f"{name}, epoch", done, total),
    )
    for stage in stages:
        kept = sum(int(stage.masks[one].count_nonzero()) for one in context.target.layout.names)
        yield MethodResult(stage.sparsity, stage.model, kept, epochs=stage.epochs)
