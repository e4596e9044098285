"""A child on trial: what racing and selection ask of it, without its genes."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from deap import base
from numpy.typing import NDArray

from gaprune.evolution.genome import Genes, Individual, bits_key
from gaprune.evolution.tasks import BreedResult
from gaprune.masks.supermask import Layout


class Newborn:
    """A child that has not survived a generation yet; its genes lie where it was bred.

    Args:
        child: what came back from breeding.
        origin: the operators that made it.
        learning_rate: its own step length for gradient-informed mutation.
        fitness: the kind of DEAP fitness that the search compares.

    Attributes:
        sprint: fitness on the first rung of the race.
    """

    def __init__(
        self, child: BreedResult, origin: str, learning_rate: float, fitness: type[base.Fitness]
    ) -> None:
        self.child, self.origin, self.learning_rate = child, origin, learning_rate
        self.fitness = fitness()
        self.sprint = child.fitness

    @cached_property
    def key(self) -> str:
        """Hash of the mask, as an individual's."""
        return bits_key(self.bits)

    @property
    def bits(self) -> NDArray[np.uint8]:
        """The packed mask."""
        return self.child.bits

    @property
    def keep(self) -> int:
        """Kept weights of the whole network."""
        return self.child.keep

    def grown(self, genes: Genes, layout: Layout) -> Individual:
        """Return the individual that it becomes, with the fitness that it has."""
        one = Individual(genes, layout, self.origin, self.learning_rate, bits=self.bits)
        one.fitness, one.sprint = self.fitness, self.sprint
        return one
