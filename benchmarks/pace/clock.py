"""Times of things that are done in turn: a machine's speed drifts, and what else runs on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import log


def seconds_of(work: Callable[[], object]) -> float:
    """Do it and return how long it took."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def pairs_of(
    first: Callable[[], object],
    second: Callable[[], object],
    *,
    most: int,
    least: int = 5,
    seconds: float = 60.0,
) -> list[tuple[float, float]]:
    """Do both again and again, now the one first and now the other, and return their seconds.

    Args:
        first: what is compared,
        second: and with what.
        most: pairs.
        least: pairs, however long they take.
        seconds: after which no further pair than the least is begun.
    """
    first(), second()  # what is made or loaded at first
    found: list[tuple[float, float]] = []
    started = time.perf_counter()
    while len(found) < most:
        if len(found) >= least and time.perf_counter() - started > seconds:
            break
        if len(found) % 2:
            later = seconds_of(second)
            found.append((seconds_of(first), later))
        else:
            found.append((seconds_of(first), seconds_of(second)))
    return found


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the power of the size with which the cost grows from the smallest to the largest."""
    return log(costs[-1] / costs[0]) / log(sizes[-1] / sizes[0])
