"""What all methods of a comparison share: the network, the data, the settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from gaprune.calibration.calibration_set import CalibrationSet, make_calibration_set
from gaprune.calibration.samples import Samples
from gaprune.callbacks import Observer
from gaprune.comparison.methods.schedule import PruningStep
from gaprune.comparison.methods.training import TrainingOptions
from gaprune.comparison.ranking import RankedUnits, kind_of
from gaprune.comparison.rows import Row
from gaprune.config import Settings, make_settings
from gaprune.criteria import DenseNetwork
from gaprune.errors import InputError
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evolution.tasks import derive_seed
from gaprune.models.target import Target
from gaprune.runs.resolve_settings import check_settings, resolve_settings
from gaprune.runs.run import CRITERION_INPUTS
from gaprune.runs.setup import make_evaluator


class ComparisonObserver(Observer):
    """An observer that also receives the rows of the comparison."""

    def row(self, row: Row, done: int, total: int) -> None:
        """A row is known, the `done`-th of `total`; rows of an earlier run come first."""


@dataclass(frozen=True)
class MethodResult:
    """What a method hands in: a network to be measured, and what making it took.

    Attributes:
        sparsity: fraction of prunable weights asked to be removed.
        model: in evaluation mode, on the target's device.
        kept: prunable weights that are left (not zeroed, not removed).
        evaluations: candidates scored so far.
        epochs: of training so far.
    """

    sparsity: float
    model: nn.Module
    kept: int
    evaluations: int = 0
    epochs: float = 0.0


@dataclass(frozen=True, eq=False)
class ComparisonContext:
    """Everything a method may use; it changes none of it.

    Attributes:
        target: the dense network.
        settings: of the search and the calibration inputs; a method fills in sparsity and seed.
        train: labelled training data, or None.
        training: how networks are trained.
        epochs: of training at one step of a schedule.
        schedule: the user's own steps, or none.
        clusters: values of a layer's codebook, for `clustered`.
        observer: told of progress.
        said: warnings of its searches, so that none is given for every sparsity and seed.
    """

    target: Target
    settings: Settings
    train: Samples | None
    training: TrainingOptions
    epochs: float
    schedule: Sequence[PruningStep]
    clusters: int
    observer: ComparisonObserver
    said: set[str] = field(default_factory=set, repr=False)
    _prepared: dict[int, tuple[Evaluator, CalibrationSet]] = field(default_factory=dict, repr=False)

    @cached_property
    def ground(self) -> RankedUnits:
        """What is ranked: weights, or the units of the pattern."""
        return RankedUnits.of(self.target, self.settings)

    @property
    def kind(self) -> str:
        """The kind of the pattern, see `gaprune.comparison.ranking`."""
        return kind_of(self.settings.pattern)

    def generator(self, *parts: str | int) -> torch.Generator:
        """Return a generator that depends on `parts` alone, so that rows do not on each other."""
        return torch.Generator().manual_seed(derive_seed(*parts))

    def settings_for(self, sparsity: float, seed: int) -> Settings:
        """Return the settings of one pruning run."""
        stated = self.settings.model_dump(exclude_unset=True)  # a preset fills in the rest
        return make_settings({**stated, "sparsity": sparsity, "seed": seed})

    def evaluator(self, seed: int) -> Evaluator:
        """Return calibration inputs and teacher of one seed, the same as `gaprune prune` shows with it."""
        return self._prepare(seed)[0]

    def plan(self, seed: int) -> CalibrationSet:
        """Return the calibration inputs of one seed."""
        return self._prepare(seed)[1]

    def criterion_inputs(self, seed: int) -> Tensor:
        """Return the inputs shown to criteria, `[N, …]`."""
        return self.evaluator(seed).statistics_inputs[:CRITERION_INPUTS]

    def network(self) -> DenseNetwork:
        """Return the dense network as criteria see it."""
        target = self.target
        return DenseNetwork(target.model, target.weights, target.layout, target.inputs)

    def training_samples(self) -> Samples:
        """Return the training data.

        Raises:
            InputError: there are none.
        """
        if self.train is None:
            raise InputError(
                "train: this method needs labelled training data and has none; give --train FILE"
            )
        return self.train

    def masked(
        self, sparsity: float, masks: Mapping[str, Tensor] | Tensor, **cost: Any
    ) -> MethodResult:
        """Return the target with masks (flat, or by name) written into its weights."""
        by_name = self.target.layout.split(masks) if isinstance(masks, Tensor) else dict(masks)
        kept = sum(int(by_name[name].count_nonzero()) for name in self.target.layout.names)
        return MethodResult(sparsity, self.target.masked_copy(by_name), kept, **cost)

    def _prepare(self, seed: int) -> tuple[Evaluator, CalibrationSet]:
        if seed not in self._prepared:
            preset = check_settings(self.settings)
            stated = self.settings_for(self.settings.sparsity, seed)
            settings = resolve_settings(stated, preset, self.target)
            plan = make_calibration_set(
                self.target, settings, self.generator(seed, "run"), self.observer
            )
            self._prepared.clear()  # one seed at a time is in use
            self._prepared[seed] = make_evaluator(self.target, settings, preset, plan), plan
        return self._prepared[seed]


def part_name(method: str, seed: int, sparsity: float | None = None) -> str:
    """Name a part of a comparison for people; seed 0, which most have only, goes without saying."""
    of = "" if sparsity is None else f" {sparsity:g}"
    return f"{method}{of}, seed {seed}" if seed else f"{method}{of}"


MethodFunction = Callable[[ComparisonContext, Sequence[float], int], Iterator[MethodResult]]
"""A method: from a contest, sparsities and a seed to networks."""
