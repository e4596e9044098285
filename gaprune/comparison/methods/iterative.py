"""Iterative magnitude pruning (IMP): prune a little, train what is left, prune again.

Han et al. 2015, section 3 (magnitude), Zhu and Gupta 2017 (gradual schedule), Frankle et al. 2019
and Renda et al. 2020 (weights rewound before training). The training data is labelled, or generated
calibration inputs with the dense network's outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from gaprune.comparison.methods.training import TrainingData, TrainingOptions, train
from gaprune.errors import InputError, about, unknown_name
from gaprune.masks.budget import check_sparsity, keep_total
from gaprune.masks.supermask import global_mask
from gaprune.models.target import Target, private_copy, trainable_copy

CUBIC_STEPS = 10
_TENTHS = tuple(tenth / 10 for tenth in range(1, 10))
_FINE_STEPS = (0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99)


@dataclass(frozen=True)
class PruningStep:
    """Prune to a sparsity, then train.

    Raises:
        InputError: a number outside its range.
    """

    sparsity: float  # fraction of all prunable weights removed so far, strictly between 0 and 1
    epochs: float  # passes over the training data after pruning, 0 or more; may be a fraction

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        if not 0 <= self.epochs < math.inf:
            raise InputError(f"epochs: must be 0 or more and finite, got {self.epochs}")


def linear(goals: Sequence[float], epochs: float) -> list[PruningStep]:
    """Return steps of 10 % of all weights: 0.1, 0.2, …, with the goals between them."""
    return [PruningStep(sparsity, epochs) for sparsity in _merged(_TENTHS, goals)]


def long(goals: Sequence[float], epochs: float) -> list[PruningStep]:
    """Return steps of 10 % to 0.9 with twice the epochs, then finer ones with three times."""
    return [
        # high sparsities need more training
        PruningStep(sparsity, (2 if sparsity <= _TENTHS[-1] else 3) * epochs)
        for sparsity in _merged((*_TENTHS, *_FINE_STEPS), goals)
    ]


def cubic(goals: Sequence[float], epochs: float) -> list[PruningStep]:
    """Return `CUBIC_STEPS` steps on Zhu and Gupta 2017, eq. 1, from 0 to the largest goal.

    After t of n steps the sparsity is s·(1 − (1 − t/n)³): most weights are removed early.
    Smaller goals become additional steps.
    """
    largest = max(goals, default=0.0)
    grid = [largest * (1 - (1 - step / CUBIC_STEPS) ** 3) for step in range(1, CUBIC_STEPS)]
    return [PruningStep(sparsity, epochs) for sparsity in _merged(grid, goals)]


REWIND = "rewind"
SCHEDULES: dict[str, Callable[[Sequence[float], float], list[PruningStep]]] = {
    "linear": linear,
    "long": long,
    "cubic": cubic,
    "direct": lambda goals, epochs: [PruningStep(goal, epochs) for goal in _merged((), goals)],
    REWIND: linear,  # the same steps; kept weights are rewound before each training
}
"""Name → `(goals, epochs per step)` → steps that hold every goal and none above the largest."""


def parse_schedule(text: str) -> str | tuple[PruningStep, ...]:
    """Parse a schedule: a key of `SCHEDULES`, or steps such as `0.5:1,0.9:3.5`.

    Raises:
        InputError: an unknown name, a part that is no pair of numbers in their ranges, or
            sparsities that don't increase.
    """
    if ":" in text:
        return tuple(check_steps([_parse_step(part) for part in text.split(",")]))
    if text not in SCHEDULES:
        raise unknown_name("schedule", text, [*SCHEDULES, "SPARSITY:EPOCHS,…"])
    return text


def check_steps(steps: Sequence[PruningStep]) -> list[PruningStep]:
    """Return the steps; raise an `InputError` unless there are any and sparsities increase."""
    if not steps:
        raise InputError("schedule: must have at least one step, such as 0.5:1, got none")
    for before, after in pairwise(steps):
        if after.sparsity <= before.sparsity:
            raise InputError(
                "schedule: sparsities must grow from step to step, "
                f"got {after.sparsity:g} after {before.sparsity:g}"
            )
    return list(steps)


def _parse_step(part: str) -> PruningStep:
    try:
        sparsity, epochs = map(float, part.split(":"))
    except ValueError:
        raise InputError(
            f"schedule: each step must be SPARSITY:EPOCHS, such as 0.5:1, got {part!r}"
        ) from None
    try:
        return PruningStep(sparsity, epochs)
    except InputError as error:
        raise about(f"schedule: step {part!r}", error) from None


def _merged(grid: Sequence[float], goals: Sequence[float]) -> list[float]:
    """Return the goals and the grid below the largest, sorted; a goal replaces a point near it."""
    targets = sorted({check_sparsity(goal) for goal in goals})
    if not targets:
        raise InputError("goals: must hold at least one sparsity, got none")
    between = [
        point
        for point in grid
        # 0.1 + 0.2 is no step beside 0.3
        if point < targets[-1] and not any(math.isclose(point, goal) for goal in targets)
    ]
    return sorted([*targets, *between])


@dataclass(frozen=True, eq=False)
class PruningStage:
    """The network after one step.

    Attributes:
        masks: parameter name → bool of its shape, True where the weight is kept; each stage keeps a
            subset of what the one before kept.
    """

    sparsity: float  # requested by the step
    masks: dict[str, Tensor]
    model: nn.Module = field(repr=False)  # a frozen copy in evaluation mode; pruned weights are 0
    epochs: float  # of training so far, all steps together


def prune_iteratively(  # noqa: PLR0913 # what it depends on, each by its own name
    target: Target,
    data: TrainingData,
    steps: Sequence[PruningStep],
    training: TrainingOptions,
    generator: torch.Generator,
    *,
    rewind: bool = False,
    on_epoch: Callable[[float], None] = lambda _epochs: None,
) -> Iterator[PruningStage]:
    """Yield the network after each step; a stage is computed when it is requested.

    Each step keeps the largest of the remaining weights over all layers (exactly as many as the
    sparsity says, at least one per layer), and trains them.

    With `rewind`, all parameters and buffers are reset to the original's before each training, so
    that only the mask carries over. `on_epoch` receives the epochs done so far, all steps together.

    Raises:
        InputError: sparsities that don't increase, or one that empties a layer; before any work.
        GapruneError: (from the iterator) training gives numbers that are not finite.
    """
    keeps = [keep_total(target.layout, step.sparsity) for step in check_steps(steps)]

    def stages() -> Iterator[PruningStage]:
        model = trainable_copy(target.model)
        remaining = torch.ones(target.layout.total, dtype=torch.bool, device=target.device)
        epochs = 0.0
        for step, keep in zip(steps, keeps, strict=True):
            weights = {name: model.get_parameter(name).detach() for name in target.layout.names}
            scores = target.layout.flatten(weights).abs().float()
            scores.masked_fill_(~remaining, -torch.inf)  # pruned weights never come back
            remaining = global_mask(scores, target.layout, keep)
            masks = target.layout.split(remaining)
            if rewind:
                model = trainable_copy(target.model)  # Renda et al. 2020: weight rewinding

            def report(done: float, before: float = epochs) -> None:
                on_epoch(before + done)

            train(model, data, training, step.epochs, generator, masks=masks, on_epoch=report)
            epochs += step.epochs
            # a copy: the caller may change it
            yield PruningStage(step.sparsity, masks, private_copy(model, target.device), epochs)

    return stages()
