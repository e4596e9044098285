"""The race of a generation: few calibration inputs for all children, all calibration inputs for the faster half."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import nsmallest
from math import ceil

from gaprune.evolution.offspring import Newborn


def faster_half(children: Iterable[Newborn], most: int) -> list[Newborn]:
    """Return the faster half of the children (one more of an odd number), fastest first.

    Of equals the earlier ones stay. No more than half of `most` are held at once, and the last
    that came: who cannot be among the fastest any more is let go of, with its genes.

    Args:
        children: as they come.
        most: how many may come.
    """
    came = 0

    def counted() -> Iterator[Newborn]:
        nonlocal came
        for child in children:
            came += 1
            yield child

    found = nsmallest(ceil(most / 2), counted(), key=lambda child: -child.sprint)
    return found[: ceil(came / 2)]
