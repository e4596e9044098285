"""Sweeps: one number moves over a range, to find where a network breaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gaprune.calibration.calibration_set import make_calibration_set
from gaprune.calibration.parse import PROCEDURAL
from gaprune.calibration.samples import Samples
from gaprune.callbacks import Observer, ObserverGroup
from gaprune.comparison.methods.threshold import sweep_thresholds
from gaprune.comparison.plots.sweep_plots import plot_clusters, plot_thresholds
from gaprune.config import make_settings
from gaprune.errors import InputError, unknown_name
from gaprune.evaluation.labelled import read_test
from gaprune.evolution.tasks import derive_seed
from gaprune.exports.clustering import sweep_clusters
from gaprune.models.forward import standard_torch
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import LayerPatterns, Target, target_from_module
from gaprune.runs.directory import load_masks
from gaprune.runs.python_display import python_display

CLUSTERS = (256, 128, 64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2)  # default range: 8 bits to 1


@dataclass(frozen=True)
class SweepOptions:
    """The range of a sweep.

    Raises:
        InputError: a drop outside [0, 1].
    """

    values: Sequence[float] = ()  # thresholds, or numbers of clusters; empty: a range that fits
    max_drop: float = 0.01  # accuracy (or agreement, without labels) that may be lost, a fraction
    biases: bool = False  # whether biases are zeroed, or clustered, too
    masks: Mapping[str, Tensor] | None = None  # clusters are made from the weights that they keep

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop <= 1:
            raise InputError(
                "max_drop: must be from 0 to 1 (0.01 allows one percentage point of accuracy to "
                f"be lost), got {self.max_drop}"
            )


@dataclass(frozen=True)
class SweepResult:
    """The points of a sweep."""

    rows: list[dict[str, Any]] = field(repr=False)  # plain data, one per point
    best: dict[str, Any] | None  # row of the furthest point that loses no more than `max_drop`
    dense_accuracy: float | None  # of the unchanged network, or None without labels
    plot: Callable[[Path], None] = field(repr=False)  # writes the picture to a .svg or .png


def sweep(  # noqa: PLR0913 # options, each by its own name
    model: nn.Module,
    by: str = "threshold",
    *,
    values: Sequence[float] = (),
    max_drop: float = 0.01,
    biases: bool = False,
    masks: Mapping[str, Tensor] | str | Path | None = None,
    inputs: InputOptions | None = None,
    test: object = None,
    prune_also: LayerPatterns = (),
    ignore: LayerPatterns = (),
    output: str | int | None = None,
    fold_parametrizations: bool = False,
    observer: Observer | None = None,
    progress: bool = True,
) -> SweepResult:
    """Move one number over a range and see where a network breaks.

    Args:
        model: any trained network that takes one tensor and returns one; stays unchanged.
        by: `threshold` zeroes weights whose magnitude is below a threshold; `clusters` replaces
            the weights of a layer by a few shared values.
        values: thresholds, or numbers of clusters; empty takes a range that fits.
        max_drop: accuracy (or agreement, without labels) that may be lost, a fraction.
        biases: whether biases are zeroed, or clustered, too.
        masks: of an earlier pruning, or the folder of a run: only kept weights are clustered.
        inputs: shape, range, normalisation of one input.
        test: held-out labelled data, as that of `gaprune.prune`, that every point is measured on;
            without it the agreement with the dense network is measured on generated inputs.
        prune_also: further parameters to prune; see `gaprune.prune`.
        ignore: parameters to leave whole.
        output: which output is compared, where the network returns several.
        fold_parametrizations: see `gaprune.prune`.
        observer: receives progress.
        progress: whether to show a progress bar on stderr.

    Returns:
        Its points as `rows`, the furthest within `max_drop` as `best`, and `plot(path)`.

    Raises:
        InputError: something breaks a rule; nothing has been computed then.
        GapruneError: an optional package is missing.

    Examples:
        >>> from gaprune import InputOptions, sweep
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> result = sweep(net, values=(0.0, 0.1), inputs=InputOptions(range=(0, 1)))
        >>> [row["threshold"] for row in result.rows]
        [0.0, 0.1]
    """
    loaded = load_masks(masks) if isinstance(masks, (str, Path)) else masks
    options = SweepOptions(values, max_drop, biases=biases, masks=loaded)
    target = target_from_module(
        model,
        inputs=inputs,
        prune_also=prune_also,
        ignore=ignore,
        output=output,
        fold_parametrizations=fold_parametrizations,
    )
    held_out = None if test is None else read_test(test, target)
    with python_display(progress=progress) as display:
        observers = ObserverGroup(display, observer or Observer())
        return sweep_target(by, target, held_out, options, observers)


@standard_torch()
def sweep_target(
    kind: str,
    target: Target,
    held_out: Samples | None,
    options: SweepOptions,
    observer: Observer | None = None,
) -> SweepResult:
    """Run one of `SWEEPS` on a loaded target; see `sweep`, also for errors."""
    if kind not in SWEEPS:
        raise unknown_name("by", kind, SWEEPS)
    held_out = held_out or generated_validation(target)
    return SWEEPS[kind](target, held_out, options, observer or Observer())


def generated_validation(target: Target) -> Samples:
    """Return the validation inputs of a procedural run with seed 0."""
    generator = torch.Generator().manual_seed(derive_seed(0, "run"))
    settings = make_settings({"sparsity": 0.5, "calibration": (PROCEDURAL,)})
    return make_calibration_set(target, settings, generator).validation


def _thresholds(
    target: Target, held_out: Samples, options: SweepOptions, observer: Observer
) -> SweepResult:
    if options.masks is not None:
        raise InputError("mask: a sweep of thresholds starts from the dense network; leave it out")
    result = sweep_thresholds(
        target,
        options.values or None,
        held_out,
        biases=options.biases,
        on_point=lambda point: observer.progress(
            "threshold, fraction removed", round(point.sparsity, 3), 1.0
        ),
    )
    best = result.largest_within(options.max_drop)
    return SweepResult(
        result.rows(),
        None if best is None else best.row(),
        result.dense_accuracy,
        lambda path: plot_thresholds(result, path, max_drop=options.max_drop, title=target.name),
    )


def _clusters(
    target: Target, held_out: Samples, options: SweepOptions, observer: Observer
) -> SweepResult:
    if not all(float(value).is_integer() for value in options.values):
        raise InputError(
            f"values: clusters are counted, got {list(options.values)}; such as 64,16,4"
        )
    # numbers from the command line are floats
    counts = [int(value) for value in options.values] or list(CLUSTERS)
    done = count(1)
    result = sweep_clusters(
        target,
        counts,
        held_out,
        options.masks,
        lambda _point: observer.progress("clusters", next(done), len(counts)),
        biases=options.biases,
    )
    best, rows = result.smallest_within(options.max_drop), result.rows()
    return SweepResult(
        rows,
        None if best is None else rows[result.points.index(best)],
        result.dense_accuracy,
        lambda path: plot_clusters(rows, path, dense=result.dense_accuracy, title=target.name),
    )


SWEEPS: dict[str, Callable[[Target, Samples, SweepOptions, Observer], SweepResult]] = {
    "threshold": _thresholds,
    "clusters": _clusters,
}
"""Kind → what it does."""
