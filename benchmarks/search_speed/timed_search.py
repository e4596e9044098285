"""A search under a time limit: the shared problem, the timed evaluator and the resulting score."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.isolated_process import peak_mb
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
class SearchProblem:
    """What every optimizer of a comparison gets.

    Attributes:
        target: name in the zoo.
        sparsity: fraction of weights removed.
        seconds: time limit of the search; calibration inputs are made before.
        seed: seed of the calibration inputs and of the search.
        calibration: number of calibration inputs.
        validation: number of validation inputs, which no search uses.
        kinds: kinds of calibration inputs; `auto` is the default of `gaprune prune`.
    """

    target: str = "mnist-mlp"
    sparsity: float = 0.95
    seconds: float = 60.0
    seed: int = 0
    calibration: int = 1024
    validation: int = 1024
    kinds: tuple[str, ...] = ("auto",)

    def run(self, observer: Observer | None = None, **settings: Any) -> PruningRun:
        """Return a gaprune run whose calibration inputs exist; equal seeds give equal inputs."""
        problem = {
            "sparsity": self.sparsity,
            "seed": self.seed,
            "calibration": self.kinds,
            "calibration_count": self.calibration,
            "validation_count": self.validation,
        }
        checked = check_settings(make_settings({**problem, **settings}))
        target = load_target(self.target)
        run = PruningRun(target, resolve_settings(checked, target), observer=observer)
        run.evaluator  # noqa: B018 - a cached property: build it before the clock starts
        return run


class SearchScore(NamedTuple):
    """The best mask of a search, and what the search cost.

    Attributes:
        accuracy: on the 10,000 test images.
        fitness: on the calibration inputs.
        agreement: with the dense network on the validation inputs.
        evaluations: candidates scored; for gaprune, every gradient step counts as one.
        per_second: evaluations per second.
        seconds: duration of the search.
        peak_mb: peak memory of the process, MB.
        before_mb: peak memory before the search started: torch, network and calibration inputs.
    """

    accuracy: float
    fitness: float
    agreement: float
    evaluations: int
    per_second: float
    seconds: float
    peak_mb: float
    before_mb: float


class TimedSearch:
    """Scores candidates and remembers the best one until the time limit.

    Args:
        evaluator: network, calibration inputs and objective.
        seconds: time limit, counted from the construction.
        keep: number of weights to keep.
    """

    def __init__(self, evaluator: Evaluator, seconds: float, keep: int) -> None:
        self._evaluator, self._keep = evaluator, keep
        self._before_mb = peak_mb()
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
        """Whether the time limit has passed."""
        return time.monotonic() - self._started >= self._seconds

    def fitness(self, scores: Tensor) -> float:
        """Return the fitness of the mask that keeps the top k of flat scores `[total]`."""
        # EvoTorch passes a read-only subclass of Tensor.
        plain = scores.as_subclass(Tensor).float()
        return self.mask_fitness(global_mask(plain, self.layout, self._keep))

    def mask_fitness(self, mask: Tensor) -> float:
        """Return the fitness of a flat mask; remember the best mask within the time limit."""
        fitness = self._evaluator.fitness(mask)
        self._evaluations += 1
        if fitness > self._fitness and (not self.over or self._mask is None):
            self._fitness, self._mask = fitness, mask.clone()
        return fitness

    def score(self) -> SearchScore:
        """Measure the best mask; at least one candidate must have been scored."""
        assert self._mask is not None
        seconds = time.monotonic() - self._started
        return score_mask(
            self._evaluator, self._mask, self._evaluations, seconds, (peak_mb(), self._before_mb)
        )


def score_mask(
    evaluator: Evaluator,
    mask: Tensor,
    evaluations: int,
    seconds: float,
    memory: tuple[float, float],
) -> SearchScore:
    """Measure a mask on data that no search uses.

    Args:
        evaluator: network, calibration inputs and objective.
        mask: flat mask `[total]`.
        evaluations: evaluations of the search.
        seconds: duration of the search.
        memory: peak memory of the process after and before the search, MB.
    """
    images, labels = mnist.test_set()
    outputs = evaluator.outputs(mask, images)
    return SearchScore(
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
    """Return LAMP scores as ranks in [0, 1) `[total]`, so that one step length fits all."""
    return rank(score("lamp", run.evaluator.network, None, torch.Generator(), density=None))


def random_ranks(run: PruningRun) -> Tensor:
    """Return uniform scores in [0, 1) `[total]`."""
    generator = torch.Generator().manual_seed(run.settings.seed)
    return torch.rand(run.evaluator.layout.total, generator=generator)


def keep_count(run: PruningRun) -> int:
    """Return the number of weights to keep."""
    return keep_total(run.evaluator.layout, run.settings.sparsity)
