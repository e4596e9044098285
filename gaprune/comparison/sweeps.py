"""Sweeps: one number moved over a range, to see where a network breaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor

from gaprune.calibration.samples import Samples
from gaprune.callbacks import Observer
from gaprune.comparison.methods.threshold import sweep_thresholds
from gaprune.comparison.plots.cluster_plot import plot_clusters
from gaprune.comparison.plots.threshold_plot import plot_thresholds
from gaprune.errors import InputError, unknown_name
from gaprune.export.clustering import sweep_clusters
from gaprune.models.target import Target

CLUSTERS = (256, 128, 64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2)


@dataclass(frozen=True)
class SweepOptions:
    """What is swept over, and how.

    Attributes:
        values: thresholds, or numbers of clusters; empty takes a range that fits.
        max_drop: accuracy (or agreement, without labels) that may be lost, a part of 1.
        biases: whether biases are zeroed, or clustered, too.
        masks: of an earlier pruning; clusters are then made of the weights that stay.

    Raises:
        InputError: a drop outside [0, 1].
    """

    values: Sequence[float] = ()
    max_drop: float = 0.01
    biases: bool = False
    masks: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop <= 1:
            raise InputError(
                "max_drop: must be from 0 to 1 (0.01 allows one point of accuracy to be lost), "
                f"got {self.max_drop}"
            )


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found, ready to be shown.

    Attributes:
        kind: key of `SWEEPS`.
        rows: plain data, one a point.
        best: the row of the furthest point that loses no more than was allowed, or None.
        dense_accuracy: before anything was changed, or None without labels.
        plot: writes the picture to a .svg or .png.
    """

    kind: str
    rows: list[dict[str, Any]]
    best: dict[str, Any] | None
    dense_accuracy: float | None
    plot: Callable[[Path], None]


def sweep(
    kind: str,
    target: Target,
    held_out: Samples,
    over: SweepOptions,
    observer: Observer | None = None,
) -> SweepResult:
    """Run one kind of sweep.

    Args:
        kind: key of `SWEEPS`.
        target: the dense network; stays as it is.
        held_out: what every point is measured on; labels may be missing.
        over: the range.
        observer: told of progress.

    Raises:
        InputError: an unknown kind, or a range that it does not take.
        GapruneError: an optional package is missing.
    """
    if kind not in SWEEPS:
        raise unknown_name("by", kind, SWEEPS)
    return SWEEPS[kind](target, held_out, over, observer or Observer())


def _thresholds(
    target: Target, held_out: Samples, over: SweepOptions, observer: Observer
) -> SweepResult:
    """Zero the weights below a threshold that rises."""
    if over.masks is not None:
        raise InputError("mask: a sweep of thresholds starts from the dense network; leave it out")
    found = sweep_thresholds(
        target,
        over.values or None,
        held_out,
        biases=over.biases,
        on_point=lambda point: observer.progress(
            "threshold, part removed", round(point.report.sparsity, 3), 1.0
        ),
    )
    best = found.largest_within(over.max_drop)
    return SweepResult(
        "threshold",
        found.rows(),
        None if best is None else best.row(),
        found.dense_accuracy,
        lambda path: plot_thresholds(found, path, max_drop=over.max_drop, title=target.name),
    )


def _clusters(
    target: Target, held_out: Samples, over: SweepOptions, observer: Observer
) -> SweepResult:
    """Replace weights by ever fewer shared values a layer."""
    counts = _whole(over.values) or list(CLUSTERS)
    done = count(1)
    found = sweep_clusters(
        target,
        counts,
        held_out,
        over.masks,
        lambda _point: observer.progress("clusters", next(done), len(counts)),
        biases=over.biases,
    )
    best = found.smallest_within(over.max_drop)
    rows = found.rows()
    return SweepResult(
        "clusters",
        rows,
        None if best is None else rows[found.points.index(best)],
        found.dense_accuracy,
        lambda path: plot_clusters(rows, path, dense=found.dense_accuracy, title=target.name),
    )


def _whole(values: Sequence[float]) -> list[int]:
    if not all(float(value).is_integer() for value in values):
        raise InputError(f"values: clusters are counted, got {list(values)}; such as 64,16,4")
    return [int(value) for value in values]


SWEEPS: dict[str, Callable[[Target, Samples, SweepOptions, Observer], SweepResult]] = {
    "threshold": _thresholds,
    "clusters": _clusters,
}
"""Kind → what it does."""
