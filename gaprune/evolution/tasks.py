"""The tasks that workers run: breed a child, score a mask, judge a mask. All are pure.

A task carries everything that varies and its own seed, so its result depends neither on the worker
nor on the order; that is what makes one worker and many give the same masks, bit for bit.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gaprune.evaluation.evaluator import Evaluator, ValidationScore
from gaprune.evolution.genome import Genes, held
from gaprune.evolution.gradient import Refinement, refine
from gaprune.evolution.operators import find_crossover, find_mutation
from gaprune.masks.supermask import pack, unpack
from gaprune.profiling import profiled


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part and on nothing else."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class Variation:
    """How a child is made.

    Attributes:
        crossover: key of `CROSSOVERS`, or None: a copy of the first parent.
        mutation: key of `MUTATIONS`, or None.
        options: keyword arguments of the mutation.
        refinement: gradient steps after that, or None.
        keep: another budget for the child, under one ranking over all layers; None inherits.
    """

    crossover: str | None = None
    mutation: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    refinement: Refinement | None = None
    keep: int | None = None

    @property
    def operators(self) -> tuple[str, ...]:
        """Names of the operators used, for statistics and adaptive rates."""
        names = (self.crossover, self.mutation, "gradient" if self.refinement else None)
        return tuple(name for name in names if name)


@dataclass(frozen=True)
class BreedResult:
    """What comes back from breeding.

    Attributes:
        genes: from workers elsewhere a handle, until they are fetched.
        fitness: on the asked rung.
        bits: the packed mask that the genes express.
        keep: kept weights of the whole network.
    """

    genes: Genes
    fitness: float
    bits: NDArray[np.uint8]
    keep: int


@dataclass(frozen=True)
class BreedTask:
    """Make one child of one or two parents and score it."""

    parents: tuple[Genes, ...]
    recipe: Variation
    seed: int
    rung: int

    @property
    def kind(self) -> str:
        """Children of as many gradient steps on the same rung take about as long."""
        steps = self.recipe.refinement.steps if self.recipe.refinement else 0
        return f"Breed, {steps} steps, rung {self.rung}"

    def run(self, evaluator: Evaluator) -> BreedResult:
        """Vary, express, score."""
        generator = torch.Generator().manual_seed(self.seed)
        with profiled("vary"):
            genes = self._refined(evaluator, generator)
        with profiled("decode"):
            mask = genes.express(evaluator.layout)
        return BreedResult(genes, evaluator.fitness(mask, self.rung), pack(mask), genes.keep)

    def _refined(self, evaluator: Evaluator, generator: torch.Generator) -> Genes:
        """Return the child as it is held between tasks."""
        plan = self.recipe.refinement
        if plan is None:
            return held(self._varied(evaluator, generator), evaluator.layout)
        # nothing here holds what is refined: it is large
        return held(
            refine(self._varied(evaluator, generator), evaluator, plan, generator), evaluator.layout
        )

    def _varied(self, evaluator: Evaluator, generator: torch.Generator) -> Genes:
        """Return the child before its gradient steps; scores that stay are the parent's own."""
        parents = tuple(one.wide() for one in self.parents)
        genes = parents[0]
        if self.recipe.crossover is not None:
            cross = find_crossover(self.recipe.crossover)
            genes = cross(parents[0], parents[1], evaluator.layout, generator)[0]
        if self.recipe.mutation is not None:
            mutate = partial(find_mutation(self.recipe.mutation), **dict(self.recipe.options))
            genes = mutate(genes, evaluator.layout, generator)
        if self.recipe.keep is not None:
            genes = replace(genes, keep=self.recipe.keep, counts=None)
        if genes.scores is parents[0].scores:
            return genes.with_scores(self.parents[0].scores)
        return genes


@dataclass(frozen=True)
class ScoreTask:
    """Score a packed mask on one rung of the search calibration inputs, as it is judged or after repair."""

    bits: NDArray[np.uint8]
    rung: int
    repaired: bool = False

    @classmethod
    def of(cls, mask: torch.Tensor, rung: int, *, repaired: bool = False) -> ScoreTask:
        """Pack a flat bool mask into a small message."""
        return cls(pack(mask), rung, repaired)

    @property
    def kind(self) -> str:
        """Every rung takes its time."""
        return f"Score, rung {self.rung}{', repaired' if self.repaired else ''}"

    def run(self, evaluator: Evaluator) -> float:
        """Return the fitness."""
        evaluator = evaluator.repaired if self.repaired else evaluator
        return evaluator.fitness(unpack(self.bits, evaluator.layout.total), self.rung)


@dataclass(frozen=True)
class ValidateTask:
    """Judge a packed mask on the validation inputs."""

    bits: NDArray[np.uint8]

    @classmethod
    def of(cls, mask: torch.Tensor) -> ValidateTask:
        """Pack a flat bool mask into a small message."""
        return cls(pack(mask))

    def run(self, evaluator: Evaluator) -> ValidationScore:
        """Return agreement and fitness on the validation inputs."""
        with profiled("validate"):
            return evaluator.validate(unpack(self.bits, evaluator.layout.total))


Task = BreedTask | ScoreTask | ValidateTask
