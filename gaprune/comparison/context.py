"""What all methods of a comparison share: the network, the data, the settings, the pattern."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from gaprune.calibration.calibration_set import CalibrationSet, make_calibration_set
from gaprune.calibration.samples import Samples
from gaprune.calibration.weighing import weighing
from gaprune.callbacks import Observer, ObserverGroup
from gaprune.comparison.rows import Row
from gaprune.comparison.spec import ComparisonSpec
from gaprune.config import Settings, make_settings
from gaprune.errors import InputError
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evolution.tasks import derive_seed
from gaprune.masks.budget import keep_total, uniform_counts
from gaprune.masks.supermask import Layout, global_mask, layered_mask
from gaprune.masks.units import Units
from gaprune.models.patterns import searched_layout, units_of
from gaprune.models.target import Target
from gaprune.pattern_names import (
    CHANNEL,
    EXPERT,
    UNSTRUCTURED,
    BlockPattern,
    NMPattern,
    parse_pattern,
)
from gaprune.runs.setup import check_settings, make_evaluator, resolve_settings

WEIGHTS, N_OF_M, BLOCK, CHANNELS = "weights", "N:M", "blocks", "channels"  # kinds of patterns
UNIT_KINDS = (BLOCK, CHANNELS)  # patterns that keep or remove groups of weights as a whole
_KINDS = {NMPattern: N_OF_M, BlockPattern: BLOCK}
_NAMED_KINDS = {UNSTRUCTURED: WEIGHTS, CHANNEL: CHANNELS}


class ComparisonObserver(Observer):
    """An observer that also receives the rows of the comparison."""

    def row(self, row: Row, done: int, total: int) -> None:
        """A row is known, the `done`-th of `total`; rows of an earlier run come first."""


class ComparisonObservers(ObserverGroup, ComparisonObserver):
    """Forwards every event to several observers, and rows as progress to those of other runs."""

    def row(self, row: Row, done: int, total: int) -> None:
        """Forward it."""
        for observer in self.observers:
            if isinstance(observer, ComparisonObserver):
                observer.row(row, done, total)
            else:
                observer.progress("rows", done, total)


@dataclass(frozen=True)
class MethodResult:
    """A pruned network, and its cost."""

    sparsity: float  # requested fraction of prunable weights to remove
    model: nn.Module  # in evaluation mode, on the target's device
    keep_count: int  # prunable weights that are left (not zeroed, not removed)
    evaluations: int = 0  # candidates scored so far
    epochs: float = 0.0  # of training so far


@dataclass(frozen=True, eq=False)
class RankedUnits:
    """What methods rank under a pattern: weights, or blocks or channels.

    `Settings.floor` does not apply: criteria are compared as they were published.
    """

    layout: Layout  # of the weights, with N:M if the pattern says so; or of the units
    units: Units | None  # None if every weight is ranked by its own score

    def best(self, scores: Tensor, sparsity: float) -> Tensor:
        """Keep the best scores (or unit means) of all layers together; flat masks `[total]`."""
        scores = self._per_unit(scores)
        if self.layout.n_of_m is not None:
            return self._n_of_m_mask(scores)
        keep = keep_total(self.layout, sparsity)  # the exact budget, over all layers
        return self._per_weight(global_mask(scores, self.layout, keep))

    def best_in_layers(self, scores: Tensor, sparsity: float) -> Tensor:
        """Keep the best scores (or unit means) of each layer, the same fraction of every layer."""
        return self.best_units_in_layers(self._per_unit(scores), sparsity)

    def best_units_in_layers(self, scores: Tensor, sparsity: float) -> Tensor:
        """Do the same with one score for each unit."""
        if self.layout.n_of_m is not None:
            return self._n_of_m_mask(scores)
        counts = uniform_counts(self.layout, sparsity)  # rounded so that the sum is the budget
        return self._per_weight(layered_mask(scores, self.layout, counts))

    def _per_unit(self, scores: Tensor) -> Tensor:
        return scores if self.units is None else self.units.unit_mean(scores)

    def _per_weight(self, mask: Tensor) -> Tensor:
        return mask if self.units is None else self.units.weight_mask(mask)

    def _n_of_m_mask(self, scores: Tensor) -> Tensor:
        n_of_m, layout = self.layout.n_of_m, self.layout
        assert n_of_m is not None
        return n_of_m.mask(scores, layout.slices, layout.shapes)


@dataclass(frozen=True, eq=False)
class ComparisonContext:
    """Everything that a method may use; no method changes it.

    Attributes:
        warned: warnings of its searches, so that none is repeated for every sparsity and seed.
    """

    target: Target  # the dense network
    spec: ComparisonSpec  # what is compared
    train: Samples | None  # labelled training data, or None
    observer: ComparisonObserver  # receives progress
    warned: set[str] = field(default_factory=set, repr=False)
    _prepared: dict[int, tuple[Evaluator, CalibrationSet]] = field(default_factory=dict, repr=False)

    @cached_property
    def ranked_units(self) -> RankedUnits:
        """What is ranked: weights, or the units of the pattern."""
        settings = self.spec.settings
        layout = searched_layout(self.target, settings).with_floor(0.0)
        return RankedUnits(layout, units_of(self.target, settings))

    def generator(self, *parts: str | int) -> torch.Generator:
        """Return a generator seeded by `parts` alone, so that rows are independent."""
        return torch.Generator().manual_seed(derive_seed(*parts))

    def settings_for(self, sparsity: float, seed: int) -> Settings:
        """Return the settings of one pruning run."""
        # unset fields stay unset, so that the preset can fill them in
        explicit = self.spec.settings.model_dump(exclude_unset=True)
        return make_settings({**explicit, "sparsity": sparsity, "seed": seed})

    def evaluator(self, seed: int) -> Evaluator:
        """Return the evaluator of one seed, with the calibration inputs of `gaprune prune`."""
        return self._prepare(seed)[0]

    def calibration(self, seed: int) -> CalibrationSet:
        """Return the calibration inputs of one seed."""
        return self._prepare(seed)[1]

    def criterion_inputs(self, seed: int, most: int) -> Tensor:
        """Return at most `most` inputs of a criterion, `[N, …]`."""
        return self.evaluator(seed).statistics_inputs[:most]

    def training_samples(self) -> Samples:
        """Return the training data, or raise an `InputError` if there is none."""
        if self.train is None:
            raise InputError(
                "train: this method needs labelled training data and has none; give --train=FILE"
            )
        return self.train

    def masked(
        self,
        sparsity: float,
        masks: Mapping[str, Tensor] | Tensor,
        model: nn.Module | None = None,
        **cost: Any,
    ) -> MethodResult:
        """Return the target, or a changed `model`, with masks (flat, or by name) on its weights."""
        by_name = self.target.layout.split(masks) if isinstance(masks, Tensor) else dict(masks)
        count = sum(int(by_name[name].count_nonzero()) for name in self.target.layout.names)
        if model is None:
            return MethodResult(sparsity, self.target.masked_copy(by_name), count, **cost)
        with torch.no_grad():
            for name, mask in by_name.items():
                weight = model.get_parameter(name)
                weight.masked_fill_(~mask.to(weight.device), 0)
        return MethodResult(sparsity, model, count, **cost)

    def _prepare(self, seed: int) -> tuple[Evaluator, CalibrationSet]:
        if seed not in self._prepared:
            stated = self.settings_for(self.spec.settings.sparsity, seed)
            checked = check_settings(stated, self.target.device)
            with weighing(self.observer):
                resolved = resolve_settings(checked, self.target)
                # the same generator as `gaprune prune`, so the same calibration inputs
                calibration = make_calibration_set(
                    self.target, resolved.settings, self.generator(seed, "run"), self.observer
                )
            self._prepared.clear()  # methods use one seed after the other: save memory
            self._prepared[seed] = make_evaluator(self.target, resolved, calibration), calibration
        return self._prepared[seed]


def kind_of(pattern: str) -> str:
    """Return the kind of a pattern: `weights`, `N:M`, `blocks` or `channels`."""
    parsed = parse_pattern(pattern)
    if parsed == EXPERT:
        raise InputError(
            "pattern: expert keeps as many experts in every layer, which the methods of a "
            "comparison do not; run gaprune prune once for each method"
        )
    return _NAMED_KINDS[parsed] if isinstance(parsed, str) else _KINDS[type(parsed)]


def part_name(method: str, seed: int, sparsity: float | None = None) -> str:
    """Name a part of a comparison for people; seed 0, the default, is not mentioned."""
    name = method if sparsity is None else f"{method} {sparsity:g}"
    return f"{name}, seed {seed}" if seed else name


MethodFunction = Callable[[ComparisonContext, Sequence[float], int], Iterator[MethodResult]]
"""`(context, sparsities, seed)` → pruned networks."""
