"""The race of a generation: who goes on, and what is let go of on the way."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from gaprune.evolution.genome import Fitness, Genes
from gaprune.evolution.offspring import Newborn
from gaprune.evolution.race import faster_half
from gaprune.evolution.tasks import BreedResult

SPRINTS = st.lists(st.integers(-3, 3).map(float), max_size=20)  # few values, so that many tie


def newborn(sprint: float, number: int) -> Newborn:
    """Return a child of its own genes that has run the first rung."""
    bits = np.array([number], dtype=np.uint8)
    return Newborn(
        BreedResult(Genes(torch.zeros(8), (1,), 1), sprint, bits, 1), "made", 1.0, Fitness
    )


@given(SPRINTS, st.integers(0, 5))
def test_the_faster_half_goes_on(sprints: Sequence[float], lost: int) -> None:
    """As a stable sort orders them, also where some that were expected never came."""
    children = [newborn(sprint, number) for number, sprint in enumerate(sprints)]
    order = sorted(children, key=lambda one: -one.sprint)
    expected = order[: (len(children) + 1) // 2]
    assert faster_half(iter(children), len(children) + lost) == expected


@given(SPRINTS)
def test_who_has_lost_is_let_go_of_at_once(sprints: Sequence[float]) -> None:
    """Of n children at most ⌈n/2⌉ and the last that came are held when the next is made."""
    known: list[weakref.ref[Genes]] = []

    def come() -> Iterator[Newborn]:
        for number, sprint in enumerate(sprints):
            assert sum(one() is not None for one in known) <= (len(sprints) + 1) // 2 + 1
            child = newborn(sprint, number)
            assert child.child.genes is not None
            known.append(weakref.ref(child.child.genes))
            yield child
            del child

    found = faster_half(come(), len(sprints))
    assert sum(one() is not None for one in known) == len(found)
