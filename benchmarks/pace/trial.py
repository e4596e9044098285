"""A search on the clock: one score vector in, one number out, and the best mask so far."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.real.process import peak_mb
from gaprune.callbacks import Observer
from gaprune.config import make_settings
from gaprune.criteria import score
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evaluation.objectives import accuracy
from gaprune.evolution.genome import rank
from gaprune.masks.budget import keep_total
from gaprune.masks.supermask import Layout, global_mask
from gaprune.models.target import load_target
from gaprune.models.zoo import mnist
from gaprune.runs.run import PruningRun
from gaprune.runs.setup import check_settings, resolve_settings


@dataclass(frozen=True)
class Match:
    """What all searches of a comparison are given.

    Attributes:
        target: name in the zoo.
        sparsity: fraction of weights removed.
        seconds: for the search; calibration inputs are made before.
        seed: of calibration inputs and search.
        calibration inputs: inputs that score the candidates.
        validation: inputs that none of them sees.
        kinds: of calibration inputs; `auto` is what `gaprune prune` takes.
    """

    target: str = "mnist-mlp"
    sparsity: float = 0.95
    seconds: float = 60.0
    seed: int = 0
    calibration: int = 1024
    validation: int = 1024
    kinds: tuple[str, ...] = ("auto",)

    def run(self, observer: Observer | None = None, **settings: Any) -> PruningRun:
        """Return a run of gaprune with its calibration inputs made, from the same seed for everybody."""
        given = {
            "sparsity": self.sparsity,
            "seed": self.seed,
            "calibration": self.kinds,
            "calibration_count": self.calibration,
            "validation_count": self.validation,
        }
        chosen = make_settings({**given, **settings})
        target = load_target(self.target)
        resolved = resolve_settings(check_settings(chosen), target)
        run = PruningRun(target, resolved, observer=observer)
        assert run.evaluator is not None  # made here, before the clock starts
        return run


class Score(NamedTuple):
    """What a search has found.

    Attributes:
        accuracy: of its best mask on the 10,000 test images.
        fitness: of the same on the search calibration inputs.
        agreement: with the dense network on the validation inputs.
        evaluations: candidates scored; for gaprune, every gradient step counts as one.
        per_second: evaluations.
        seconds: that the search took.
        peak_mb: the most memory that its process has held.
        before_mb: the same when the search began: torch, network and calibration inputs.
    """

    accuracy: float
    fitness: float
    agreement: float
    evaluations: int
    per_second: float
    seconds: float
    peak_mb: float
    before_mb: float


class Trial:
    """Scores candidates and remembers the best, until the time is over.

    Args:
        evaluator: network, calibration inputs and objective.
        seconds: from now on.
        keep: kept weights.
    """

    def __init__(self, evaluator: Evaluator, seconds: float, keep: int) -> None:
        self._evaluator, self._keep = evaluator, keep
        self._before = peak_mb()
        self._started = time.monotonic()
        self._seconds = seconds
        self._evaluations = 0
        self._fitness = -float("inf")
        self._mask: Tensor | None = None

    @property
    def layout(self) -> Layout:
        """The prunable layers."""
        return self._evaluator.layout

    @property
    def over(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() - self._started >= self._seconds

    def fitness(self, scores: Tensor) -> float:
        """Keep the top k of flat scores `[total]` and return the fitness of that mask."""
        own = scores.as_subclass(Tensor).float()  # EvoTorch's are of a class that lets nobody write
        return self.mask_fitness(global_mask(own, self.layout, self._keep))

    def mask_fitness(self, mask: Tensor) -> float:
        """Return the fitness of a flat mask; the best that is known in time is remembered."""
        found = self._evaluator.fitness(mask)
        self._evaluations += 1
        if found > self._fitness and (not self.over or self._mask is None):
            self._fitness, self._mask = found, mask.clone()
        return found

    def score(self) -> Score:
        """Return what was found."""
        assert self._mask is not None, "at least one candidate was scored"
        seconds = time.monotonic() - self._started
        return scored(
            self._evaluator, self._mask, self._evaluations, seconds, (peak_mb(), self._before)
        )


def scored(
    evaluator: Evaluator,
    mask: Tensor,
    evaluations: int,
    seconds: float,
    memory: tuple[float, float],
) -> Score:
    """Measure a found mask on what no search has seen.

    Args:
        evaluator: network, calibration inputs and objective.
        mask: flat.
        evaluations: of the search.
        seconds: of the search.
        memory: the most that its process held at its end and at its begin, MB.
    """
    images, labels = mnist.test_set()
    outputs = evaluator.outputs(mask, images)
    return Score(
        accuracy=float(accuracy(outputs, outputs, labels)),
        fitness=evaluator.fitness(mask),
        agreement=evaluator.validate(mask).agreement,
        evaluations=evaluations,
        per_second=evaluations / seconds,
        seconds=seconds,
        peak_mb=memory[0],
        before_mb=memory[1],
    )


def lamp_ranks(run: PruningRun) -> Tensor:
    """Return the LAMP scores as ranks in [0, 1), so that one step length fits all; `[total]`."""
    evaluator = run.evaluator
    network = evaluator.network
    return rank(score("lamp", network, None, torch.Generator(), density=None))


def random_ranks(run: PruningRun) -> Tensor:
    """Return uniform scores in [0, 1) `[total]`."""
    generator = torch.Generator().manual_seed(run.settings.seed)
    return torch.rand(run.evaluator.layout.total, generator=generator)


def kept(run: PruningRun) -> int:
    """Return how many weights stay."""
    return keep_total(run.evaluator.layout, run.settings.sparsity)
