"""Pruning by one threshold on |w|: at a percentile, or for a range of thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gaprune.calibration.samples import Samples
from gaprune.errors import InputError
from gaprune.evaluation.held_out import HeldOut, HeldOutScore
from gaprune.masks.budget import check_sparsity
from gaprune.masks.supermask import masked_weights
from gaprune.models.target import Target
from gaprune.records import LayerCount

POINTS = 25  # of the default range
LAST_QUANTILE = 0.995  # of |w|, where the default range ends: nearly everything is zero there


def _removed(layers: Iterable[LayerCount]) -> float:
    """Return the fraction of the weights that is removed; 0 without any weight."""
    counts = [(layer.total, layer.kept) for layer in layers]
    total = sum(size for size, _ in counts)
    return 1 - sum(keep for _, keep in counts) / total if total else 0.0


def percentile_mask(target: Target, sparsity: float) -> Tensor:
    """Keep the weights whose magnitude is strictly above a percentile of all.

    The percentile 100·sparsity of all |w| is numpy's default one, interpolated between neighbours,
    so the count may differ by one from `keep_total`. Equal magnitudes at the percentile are all
    removed, so fewer weights may be kept; none if all are equal. Layers may be emptied. The mask is
    flat, bool `[total]`.
    """
    fraction = Fraction(str(check_sparsity(sparsity)))  # exactly nine tenths for 0.9
    flat = target.layout.flatten(target.weights).abs()
    # values above the interpolated percentile are those above its lower neighbour
    rank = math.floor((len(flat) - 1) * fraction)
    return flat > float(np.partition(flat.double().cpu().numpy(), rank)[rank])  # O(n): no full sort


@dataclass(frozen=True)
class ThresholdPoint:
    """The network with every weight zeroed whose magnitude is below a threshold."""

    threshold: float  # on |w|
    layers: tuple[LayerCount, ...]  # zeroed weights count as removed
    agreement: float  # with the dense network on the held-out inputs, in [0, 1]
    accuracy: float | None  # on the held-out labels, or None without

    @property
    def sparsity(self) -> float:
        """The fraction of all weights that is zeroed; 0 without any weight."""
        return _removed(self.layers)

    def row(self) -> dict[str, Any]:
        """Return it as plain data; `zeroed` is parameter → fraction zeroed."""
        return {
            "threshold": self.threshold,
            "sparsity": self.sparsity,
            "agreement": self.agreement,
            "accuracy": self.accuracy,
            "zeroed": {layer.name: _removed([layer]) for layer in self.layers},
        }


@dataclass(frozen=True)
class ThresholdSweep:
    """Points by increasing threshold, and the accuracy of the dense network (None: no labels)."""

    points: tuple[ThresholdPoint, ...]
    dense_accuracy: float | None

    def largest_within(self, max_drop: float) -> ThresholdPoint | None:
        """Return the last point before the first that loses more than `max_drop`.

        The loss is that of accuracy, or of agreement without labels; None if the smallest
        threshold already loses more.
        """
        best, dense = None, HeldOutScore(self.dense_accuracy, 1.0)
        for point in self.points:
            # a later recovery does not count
            if not HeldOutScore(point.accuracy, point.agreement).within(dense, max_drop):
                break
            best = point
        return best

    def rows(self) -> list[dict[str, Any]]:
        """Return the points as plain data."""
        return [point.row() for point in self.points]


def sweep_thresholds(
    target: Target,
    thresholds: Sequence[float] | None,
    held_out: Samples,
    *,
    biases: bool = False,
    on_point: Callable[[ThresholdPoint], None] = lambda _point: None,
) -> ThresholdSweep:
    """Zero every prunable weight below a threshold, for thresholds of a range.

    Layers of smaller weights lose more, and may become empty. Inputs on which the network's output
    is then not finite count as wrong. `thresholds` on |w| are sorted, each tried once; None tries
    25 in even steps from 0 to the 99.5th percentile of all |w|. `biases` says whether the biases of
    the prunable layers are zeroed as well. `on_point` receives each point when it is measured.

    Raises:
        InputError: no thresholds, or a negative or infinite one; inputs that do not fit, labels
            for a network without classes.
    """
    parameters = {**target.weights, **(_biases(target) if biases else {})}
    if thresholds is None:
        flat = torch.cat([p.abs().double().flatten().cpu() for p in parameters.values()])
        steps = np.linspace(0, np.quantile(flat.numpy(), LAST_QUANTILE), POINTS).tolist()
    else:
        steps = [float(threshold) for threshold in thresholds]
        if not steps or not all(math.isfinite(step) and step >= 0 for step in steps):
            raise InputError(
                "thresholds: must be one or more finite magnitudes from 0, got "
                f"{', '.join(map(str, thresholds)) or 'none'}; leave them out for a range that fits"
            )
    test = HeldOut(target, held_out)
    points = []
    for threshold in sorted(set(steps)):  # a single one if the quantile is 0
        # a float32 threshold would be rounded
        masks = {name: p.abs().double() >= threshold for name, p in parameters.items()}
        score = test.measure_with(masked_weights(parameters, masks))
        layers = tuple(
            LayerCount(name, m.numel(), int(m.count_nonzero())) for name, m in masks.items()
        )
        point = ThresholdPoint(threshold, layers, score.agreement, score.accuracy)
        points.append(point)
        on_point(point)
    return ThresholdSweep(tuple(points), test.dense.accuracy)


def _biases(target: Target) -> dict[str, Tensor]:
    """Return the biases of layers with a prunable weight, unless they are prunable themselves."""
    layers = {name.rpartition(".")[0] for name in target.weights}
    return {
        name: parameter.detach()
        for name, parameter in target.model.named_parameters()
        if name.endswith("bias")
        and name.rpartition(".")[0] in layers
        and name not in target.weights
    }
