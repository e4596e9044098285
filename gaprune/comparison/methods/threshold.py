"""Pruning by one threshold on |w|: at a percentile, or moved over a range to see what breaks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from torch import Tensor

from gaprune.calibration.samples import Samples
from gaprune.comparison.methods.sparsity_report import SparsityReport, report_of_masks
from gaprune.errors import InputError
from gaprune.evaluation.held_out import HeldOut, HeldOutScore
from gaprune.masks.budget import check_sparsity
from gaprune.masks.supermask import masked_weights
from gaprune.models.target import Target

POINTS = 25  # of the default range
TOP = 0.995  # the quantile of |w| where it ends: beyond it next to nothing is left


def percentile_mask(target: Target, sparsity: float) -> Tensor:
    """Keep the weights whose magnitude lies strictly above a percentile of all.

    The percentile 100·sparsity of all |w| is numpy's default one, interpolated between neighbours,
    so the count may differ by one from `keep_total`. Where magnitudes are equal, fewer may stay:
    ties at the percentile go together, all weights where all are equal. Layers may be emptied.

    Args:
        target: the dense network; stays as it is.
        sparsity: in (0, 1).

    Returns:
        A flat bool mask `[total]`.
    """
    part = Fraction(str(check_sparsity(sparsity)))  # as it was written, 0.9 is nine tenths
    flat = target.layout.flatten(target.weights).abs()
    # the values above the percentile are those above its lower neighbour
    rank = math.floor((len(flat) - 1) * part)
    return flat > float(np.partition(flat.double().cpu().numpy(), rank)[rank])


@dataclass(frozen=True)
class ThresholdPoint:
    """The network with every weight zeroed whose magnitude is below a threshold.

    Attributes:
        threshold: on |w|.
        report: what is left, layer by layer.
        agreement: with the dense network on the held-out inputs, 1 is perfect.
        accuracy: on the held-out labels, or None without.
    """

    threshold: float
    report: SparsityReport
    agreement: float
    accuracy: float | None

    def row(self) -> dict[str, Any]:
        """Return it as plain data; `zeroed` is the fraction gone of every parameter."""
        return {
            "threshold": self.threshold,
            "sparsity": self.report.sparsity,
            "agreement": self.agreement,
            "accuracy": self.accuracy,
            "zeroed": {row["name"]: row["sparsity"] for row in self.report.rows()},
        }


@dataclass(frozen=True)
class ThresholdSweep:
    """A threshold moved over a range.

    Attributes:
        points: by growing threshold.
        dense_accuracy: on the held-out labels before anything is zeroed, or None without.
    """

    points: tuple[ThresholdPoint, ...]
    dense_accuracy: float | None

    def largest_within(self, max_drop: float) -> ThresholdPoint | None:
        """Return the last point before the first that loses more than `max_drop`.

        The loss is that of accuracy, or of agreement without labels; None where already the
        smallest threshold loses more.
        """
        within, dense = None, HeldOutScore(self.dense_accuracy, 1.0)
        for point in self.points:
            if not HeldOutScore(point.accuracy, point.agreement).within(dense, max_drop):
                break
            within = point
        return within

    def rows(self) -> list[dict[str, Any]]:
        """Return the points as plain data."""
        return [point.row() for point in self.points]


def sweep_thresholds(
    target: Target,
    thresholds: Sequence[float] | None,
    held_out: Samples,
    *,
    biases: bool = False,
    on_point: Callable[[ThresholdPoint], None] | None = None,
) -> ThresholdSweep:
    """Zero every prunable weight below a threshold, for thresholds of a range.

    This is what a single threshold does to a network: layers of smaller weights go first, and may
    go as a whole. Inputs on which the network's output is then not finite count as wrong.

    Args:
        target: the dense network; stays as it is.
        thresholds: on |w|, from 0; swept from small to large, each once. None sweeps 25 in even
            steps from 0 to the 99.5th percentile of all |w|.
        held_out: inputs to judge by, with labels where there are any.
        biases: whether the biases of the prunable layers are zeroed by the same threshold.
        on_point: told of each point when it is measured.

    Raises:
        InputError: no thresholds, or a negative or infinite one; inputs that do not fit, labels
            for a network that names no classes.
    """
    parameters = {**target.weights, **(_biases(target) if biases else {})}
    steps = _range(parameters) if thresholds is None else _checked(thresholds)
    judge = HeldOut(target, held_out)
    points = []
    for threshold in steps:
        masks = {name: p.abs().double() >= threshold for name, p in parameters.items()}
        score = judge.measure_with(masked_weights(parameters, masks))
        report = report_of_masks(masks)
        point = ThresholdPoint(threshold, report, score.agreement, score.accuracy)
        points.append(point)
        if on_point is not None:
            on_point(point)
    return ThresholdSweep(tuple(points), judge.dense.accuracy)


def _biases(target: Target) -> dict[str, Tensor]:
    """Return the biases of the layers that own a prunable weight, those not prunable already."""
    owners = {name.rpartition(".")[0] for name in target.weights}
    return {
        name: parameter.detach()
        for name, parameter in target.model.named_parameters()
        if name.endswith("bias")
        and name.rpartition(".")[0] in owners
        and name not in target.weights
    }


def _range(parameters: Mapping[str, Tensor]) -> Sequence[float]:
    values = np.concatenate(list(_magnitudes(parameters)))
    steps: list[float] = np.linspace(0, np.quantile(values, TOP), POINTS).tolist()
    return sorted(set(steps))  # one where the percentile is 0


def _magnitudes(parameters: Mapping[str, Tensor]) -> Iterator[np.ndarray]:
    for parameter in parameters.values():
        yield parameter.abs().double().flatten().cpu().numpy()


def _checked(thresholds: Sequence[float]) -> Sequence[float]:
    steps = sorted({float(threshold) for threshold in thresholds})
    if not steps or not all(math.isfinite(step) and step >= 0 for step in steps):
        raise InputError(
            "thresholds: must be one or more finite magnitudes from 0, got "
            f"{', '.join(map(str, thresholds)) or 'none'}; leave them out for a range that fits"
        )
    return steps
