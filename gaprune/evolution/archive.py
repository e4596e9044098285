"""What is kept of individuals without further children: the mask, a thirty-second of the genes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from deap import base
from numpy.typing import NDArray
from torch import Tensor

from gaprune.evolution.genome import Genes, Individual, kind_of
from gaprune.masks.supermask import Layout, layer_counts, pack, unpack


@dataclass(frozen=True, eq=False)
class Remembered:
    """A leader that left the population, or one of the hall of fame; nothing in it changes.

    Attributes:
        bits: the packed mask.
        key: its hash.
        keep: kept weights of the whole network.
        origin: see `Individual`; so are `learning_rate`, `sprint` and `fitness`.
    """

    bits: NDArray[np.uint8]
    key: str
    keep: int
    origin: str
    learning_rate: float
    sprint: float
    fitness: base.Fitness

    @classmethod
    def of(cls, one: Individual) -> Remembered:
        """Forget all but the mask, and how good it is."""
        return cls(
            one.bits, one.key, one.keep, one.origin, one.learning_rate, one.sprint, one.fitness
        )

    @property
    def quality(self) -> float:
        """Fitness on the search calibration inputs, the first DEAP fitness value."""
        return float(self.fitness.values[0])

    def __deepcopy__(self, memo: object) -> Remembered:
        return self  # DEAP's hall of fame copies whom it takes in

    def grown(self, layout: Layout) -> Individual:
        """Return an individual again: scores are 1 where a weight stays and 0 elsewhere."""
        one = as_mask(unpack(self.bits, layout.total), layout, self.origin, self.keep)
        one.learning_rate, one.sprint, one.fitness = self.learning_rate, self.sprint, self.fitness
        return one


def as_mask(mask: Tensor, layout: Layout, origin: str, keep: int | None = None) -> Individual:
    """Return an individual that expresses a flat bool mask, whatever its scores once were.

    `keep` is the budget that the mask spends; None is the number of what it keeps.
    """
    counts = tuple(layer_counts(mask, layout))
    genes = Genes(mask.to(kind_of(layout)), counts, sum(counts) if keep is None else keep)
    return Individual(genes, layout, origin, bits=pack(mask))
