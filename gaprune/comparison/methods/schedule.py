"""How sparsity grows while a network is trained: steps of a sparsity and its epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from gaprune.errors import InputError, unknown_name
from gaprune.masks.budget import check_sparsity

CUBIC_STEPS = 10
LONG_TAIL = (0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99)
_TENTHS = tuple(tenth / 10 for tenth in range(1, 10))


@dataclass(frozen=True)
class PruningStep:
    """Prune to a sparsity, then train.

    Attributes:
        sparsity: fraction of all prunable weights that are gone, strictly between 0 and 1.
        epochs: passes over the lessons after pruning, 0 or more; fractions are allowed.

    Raises:
        InputError: a number outside its range.
    """

    sparsity: float
    epochs: float

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        if not 0 <= self.epochs < math.inf:
            raise InputError(f"epochs: must be 0 or more and finite, got {self.epochs}")


Schedule = Callable[[Sequence[float], float], list[PruningStep]]
"""`(goals, epochs per step)` → steps that hold every goal exactly and none beyond the largest."""


def linear(goals: Sequence[float], epochs: float) -> list[PruningStep]:
    """Return steps of 10 % of all weights: 0.1, 0.2, …, with the goals between them."""
    return [PruningStep(sparsity, epochs) for sparsity in _merged(_TENTHS, goals)]


def long(goals: Sequence[float], epochs: float) -> list[PruningStep]:
    """Return steps of 10 % to 0.9 with twice the epochs, then ever finer ones with three times."""
    return [
        PruningStep(sparsity, (2 if sparsity <= _TENTHS[-1] else 3) * epochs)
        for sparsity in _merged((*_TENTHS, *LONG_TAIL), goals)
    ]


def cubic(goals: Sequence[float], epochs: float) -> list[PruningStep]:
    """Return `CUBIC_STEPS` steps on Zhu and Gupta 2017, eq. 1, from 0 to the largest goal.

    After t of n steps the sparsity is s·(1 − (1 − t/n)³): many weights go while there are many.
    Smaller goals become steps of their own between those.
    """
    most = max(goals, default=0.0)
    grid = [most * (1 - (1 - step / CUBIC_STEPS) ** 3) for step in range(1, CUBIC_STEPS)]
    return [PruningStep(sparsity, epochs) for sparsity in _merged(grid, goals)]


def direct(goals: Sequence[float], epochs: float) -> list[PruningStep]:
    """Return one step for each goal."""
    return [PruningStep(sparsity, epochs) for sparsity in _merged((), goals)]


SCHEDULES: dict[str, Schedule] = {"linear": linear, "long": long, "cubic": cubic, "direct": direct}


def make_schedule(name: str, goals: Sequence[float], epochs: float) -> list[PruningStep]:
    """Return the steps of a schedule by name.

    Args:
        name: a key of `SCHEDULES`.
        goals: the sparsities that are wanted, in any order.
        epochs: of one step, 0 or more.

    Raises:
        InputError: an unknown name, no goal, a goal that is no sparsity, negative epochs.
    """
    if name not in SCHEDULES:
        raise unknown_name("schedule", name, SCHEDULES)
    return SCHEDULES[name](goals, epochs)


def parse_schedule(text: str) -> list[PruningStep]:
    """Return the steps that `0.5:1,0.9:3.5` states: each a sparsity and its epochs.

    Raises:
        InputError: a part that is no pair of numbers in their ranges, or sparsities that do not
            grow.
    """
    return check_steps([_parse_step(part) for part in text.split(",")])


def check_steps(steps: Sequence[PruningStep]) -> list[PruningStep]:
    """Return the steps if there are any and their sparsities grow.

    Raises:
        InputError: there are none, or one does not remove more than the one before.
    """
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
    sparsity, _, epochs = part.partition(":")
    try:
        numbers = float(sparsity), float(epochs)
    except ValueError:
        raise InputError(
            f"schedule: each step must be SPARSITY:EPOCHS, such as 0.5:1, got {part!r}"
        ) from None
    try:
        return PruningStep(*numbers)
    except InputError as error:
        raise InputError(f"schedule: step {part!r}: {error}") from None


def _merged(grid: Sequence[float], goals: Sequence[float]) -> list[float]:
    """Return goals and the grid below the largest, in order; a goal replaces a point beside it."""
    wanted = sorted({check_sparsity(goal) for goal in goals})
    if not wanted:
        raise InputError("goals: must hold at least one sparsity, got none")
    between = [
        point
        for point in grid
        if point < wanted[-1] and not any(math.isclose(point, goal) for goal in wanted)
    ]
    return sorted([*wanted, *between])
