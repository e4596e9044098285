"""Methods that change the weights: pruning with fine-tuning, with labels or on calibration inputs, slimming."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from math import prod

import torch

from gaprune.comparison.context import ComparisonContext, Entrant, Run, part_name
from gaprune.comparison.methods.iterative import Iteration, prune_iteratively
from gaprune.comparison.methods.schedule import SCHEDULES, Step
from gaprune.comparison.methods.slimming import Slimming, slim_to
from gaprune.comparison.methods.training import Lessons, from_labels, from_teacher

TAUGHT_ON_CALIBRATION = 32768  # generated inputs that stand for a training set
MOST_VALUES = 2**28  # of all of them together: large images must fit into memory


def finetuned(schedule: str, *, rewind: bool = False) -> Run:
    """Return iterative magnitude pruning with fine-tuning on the training set."""

    def run(
        contest: ComparisonContext, sparsities: Sequence[float], seed: int
    ) -> Iterator[Entrant]:
        lessons = from_labels(contest.lessons())
        steps = SCHEDULES[schedule](sparsities, contest.epochs)
        generator = contest.generator("comparison", "finetuned", seed)
        name = part_name(f"imp-{'rewind' if rewind else schedule}", seed)
        yield from _follow(contest, lessons, steps, generator, name, rewind=rewind)

    return run


def by_own_schedule(
    contest: ComparisonContext, sparsities: Sequence[float], seed: int
) -> Iterator[Entrant]:
    """Follow the user's own (sparsity, epochs) pairs; a `ComparisonSpec` has seen to it that they fit."""
    generator = contest.generator("comparison", "finetuned", seed)
    lessons = from_labels(contest.lessons())
    yield from _follow(
        contest, lessons, contest.schedule, generator, part_name("imp-schedule", seed)
    )


def distilled(
    contest: ComparisonContext, sparsities: Sequence[float], seed: int
) -> Iterator[Entrant]:
    """Prune and fine-tune on calibration inputs, towards what the dense network answers: no data."""
    plan = contest.plan(seed)
    generator = contest.generator("comparison", "distilled", seed)
    if plan.fresh is None:
        assert plan.pool is not None  # a plan has one or the other
        inputs = plan.pool.inputs
    else:
        most = max(1, MOST_VALUES // prod(contest.target.inputs.shape))
        inputs = plan.fresh.draw(min(TAUGHT_ON_CALIBRATION, most), generator)
    lessons = from_teacher(contest.target, inputs)
    steps = SCHEDULES["linear"](sparsities, contest.epochs)
    yield from _follow(contest, lessons, steps, generator, part_name("distilled", seed))


def slimmed(
    contest: ComparisonContext, sparsities: Sequence[float], seed: int
) -> Iterator[Entrant]:
    """Remove channels of small γ physically until so many weights are gone, then fine-tune."""
    lessons = from_labels(contest.lessons())
    for sparsity in sparsities:
        generator = contest.generator("comparison", "slimming", seed)
        how = Slimming(epochs=contest.epochs, training=contest.training)
        name = f"{part_name('slimming', seed, sparsity)}, epoch"
        report = partial(contest.observer.progress, name, total=how.rounds * how.epochs)
        rounds = slim_to(contest.target, sparsity, lessons, how, generator, on_epoch=report)
        last = deque(rounds, maxlen=1)[0]
        yield Entrant(sparsity, last.model, last.after.prunable, epochs=last.epochs)


def _follow(  # what a path depends on
    contest: ComparisonContext,
    lessons: Lessons,
    steps: Sequence[Step],
    generator: torch.Generator,
    name: str,
    *,
    rewind: bool = False,
) -> Iterator[Entrant]:
    """Hand in the network of every step; the caller takes those that it asked for."""
    total = sum(step.epochs for step in steps)
    stages = prune_iteratively(
        contest.target,
        lessons,
        steps,
        Iteration(contest.training, rewind=rewind),
        generator,
        on_epoch=lambda done: contest.observer.progress(f"{name}, epoch", done, total),
    )
    for stage in stages:
        kept = sum(int(stage.masks[one].count_nonzero()) for one in contest.target.layout.names)
        yield Entrant(stage.sparsity, stage.model, kept, epochs=stage.epochs)
