"""The tasks that workers run: breed a child, score masks, validate a mask.

A task is a pure function of its fields, with a seed of its own. So its result depends neither on
the worker nor on the order, and any number of workers gives the same masks, bit for bit.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from gaprune.evaluation.evaluator import Evaluator, ValidationScore
from gaprune.evolution.genome import Genes, to_storage
from gaprune.evolution.gradient import refine
from gaprune.evolution.operators import find_crossover, find_mutation
from gaprune.evolution.swap_refinement import CORRELATED, refine_by_swaps
from gaprune.evolution.variation import Variation
from gaprune.masks.supermask import pack, unpack
from gaprune.profiling import profiled

Bits = NDArray[np.uint8]


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part and on nothing else."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class BreedResult:
    """The message that a worker returns for a `BreedTask`."""

    genes: Genes  # of the child; from a remote worker, a handle until they are fetched
    fitness: float  # on the rung of the task
    bits: Bits  # packed mask
    keep: int  # the budget that the mask spends


@dataclass(frozen=True)
class BreedTask:
    """Make one child of one or two parents and score it on a rung."""

    parents: tuple[Genes, ...]
    variation: Variation
    seed: int
    rung: int

    @property
    def kind(self) -> str:
        """Tasks of one kind take about the same time, from which workers predict timeouts."""
        swaps = f", {self.variation.swaps}" if self.variation.swaps else ""
        return f"Breed, {self.variation.steps} steps, rung {self.rung}{swaps}"

    def run(self, evaluator: Evaluator) -> BreedResult:
        """Vary, refine, decode, score."""
        generator = torch.Generator().manual_seed(self.seed)
        layout, refinement = evaluator.layout, self.variation.refinement
        with profiled("vary"):
            if refinement is None:
                genes = self._vary(evaluator, generator)
            else:
                # No variable here refers to the genes before refinement: they are large, and
                # `refine` frees them as soon as it has its own copy.
                genes = refine(self._vary(evaluator, generator), evaluator, refinement, generator)
            genes = to_storage(genes, layout)
        with profiled("decode"):
            mask = genes.decode(layout)
        return BreedResult(genes, evaluator.fitness(mask, self.rung), pack(mask), genes.keep)

    def _vary(self, evaluator: Evaluator, generator: torch.Generator) -> Genes:
        """Return the child before its gradient steps."""
        parents = tuple(genes.as_float32() for genes in self.parents)
        genes, variation, layout = parents[0], self.variation, evaluator.layout
        if variation.crossover is not None:
            cross = find_crossover(variation.crossover)
            genes = cross(parents[0], parents[1], layout, generator)[0]
        if variation.mutation is not None:
            mutate = partial(find_mutation(variation.mutation), **dict(variation.options))
            genes = mutate(genes, layout, generator)
        if variation.keep is not None:
            genes = replace(genes, keep=variation.keep, counts=None)
        if variation.swaps:
            correlated = variation.swaps == CORRELATED
            genes = refine_by_swaps(genes, self.parents[0], evaluator, generator, correlated)
        if genes.scores is parents[0].scores:  # unchanged: share the parent's memory
            return genes.with_scores(self.parents[0].scores)
        return genes


@dataclass(frozen=True)
class ScoreTask:
    """Score a packed mask on the calibration inputs of a rung, optionally after repair."""

    bits: Bits
    rung: int
    repaired: bool = False

    @property
    def kind(self) -> str:
        """Each rung takes its own time."""
        return f"Score, rung {self.rung}{', repaired' if self.repaired else ''}"

    def run(self, evaluator: Evaluator) -> float:
        """Return the fitness."""
        evaluator = evaluator.repaired if self.repaired else evaluator
        return evaluator.fitness(unpack(self.bits, evaluator.layout.total), self.rung)


@dataclass(frozen=True)
class ScoreGroupTask:
    """Score several packed masks in one forward pass, see `Evaluator.fitness_many`."""

    bits: tuple[Bits, ...]
    rung: int

    @property
    def kind(self) -> str:
        """Each rung takes its own time, whether the group is full or not."""
        return f"ScoreGroup, rung {self.rung}"

    def run(self, evaluator: Evaluator) -> list[float]:
        """Return the fitness of each mask."""
        masks = [unpack(bits, evaluator.layout.total) for bits in self.bits]
        return evaluator.fitness_many(masks, self.rung)


@dataclass(frozen=True)
class ValidateTask:
    """Score a packed mask on the validation inputs."""

    bits: Bits

    def run(self, evaluator: Evaluator) -> ValidationScore:
        """Return agreement and fitness on the validation inputs."""
        with profiled("validate"):
            return evaluator.validate(unpack(self.bits, evaluator.layout.total))


Task = BreedTask | ScoreTask | ScoreGroupTask | ValidateTask
