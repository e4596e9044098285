"""Plots of sweeps: what a threshold on all weights does, and how few values a layer can share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from gaprune.comparison.methods.threshold import ThresholdSweep
from gaprune.comparison.plots.figure import COLOURS, MARKERS, MUTED, drawing
from gaprune.errors import InputError
from gaprune.formatting import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_NAMED = 14  # layers that fit into a legend; of more, only the first and the last are named
LABEL_WIDTH = 0.09  # of the axis of clusters
LINES = {  # measure → label, colour, line, marker
    "accuracy": ("accuracy", COLOURS[0], "-", "o"),
    "agreement": ("agreement with the dense network", COLOURS[1], "--", "s"),
}


def plot_thresholds(
    sweep: ThresholdSweep,
    path: str | Path,
    *,
    max_drop: float | None = 0.01,
    title: str | None = None,
) -> None:
    """Draw a sweep of thresholds as two plots over one axis.

    Above, the fraction zeroed of every layer, dark for the first and light for the last (biases
    dashed), and of all together in bold. Below, accuracy (if there are labels) and agreement.

    Args:
        sweep: from `gaprune.comparison.methods.threshold.sweep_thresholds`.
        path: .svg or .png.
        max_drop: marks the largest threshold that loses no more, see `largest_within`.
        title: above the plots.

    Raises:
        InputError: a sweep without points, another suffix.
        GapruneError: matplotlib is missing, or the file cannot be written.
    """
    if not sweep.points:
        raise InputError("sweep: has no points to draw")
    steps = [point.threshold for point in sweep.points]
    with drawing(path, 9, 7) as figure:
        above, below = figure.subplots(2, 1, sharex=True)
        _draw_layers(above, steps, sweep.rows())
        _draw_line(below, "agreement", steps, [point.agreement for point in sweep.points])
        if sweep.dense_accuracy is not None:
            _draw_line(below, "accuracy", steps, [point.accuracy or 0.0 for point in sweep.points])
        if max_drop is not None:
            _mark_limit(above, below, sweep, max_drop)
        for axes in (above, below):
            axes.set_ylim(-3, 103)
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize="small")
        above.set_ylabel("zeroed (%)")
        below.set_ylabel("held-out inputs (%)")
        below.set_xlabel("threshold on |w|")
        if title is not None:
            above.set_title(title)


def _draw_layers(axes: Axes, steps: Sequence[float], rows: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib import colormaps  # noqa: PLC0415 - optional, so imported where it is used

    layers = list(rows[0]["zeroed"])
    few, last = len(layers) <= MAX_NAMED, len(layers) - 1
    for index, layer in enumerate(layers):
        named = few or index in (0, last)
        axes.plot(
            steps,
            [100 * row["zeroed"][layer] for row in rows],
            color=colormaps["viridis"](0.9 * index / max(last, 1)),  # reads as an order
            linestyle="--" if layer.endswith("bias") else "-",
            marker=MARKERS[index % len(MARKERS)] if few else None,
            markersize=3.5,
            linewidth=1.2,
            label=layer if named else None,  # matplotlib leaves None out of the legend
        )
        if not few and index == 0:
            axes.plot([], [], linestyle="none", label=f"… {len(layers) - 2} layers …")
    overall = [100 * row["sparsity"] for row in rows]
    axes.plot(steps, overall, color="black", linewidth=2.4, label="all weights", zorder=3)


def _mark_limit(above: Axes, below: Axes, sweep: ThresholdSweep, max_drop: float) -> None:
    """Draw a line at the largest threshold that loses no more than `max_drop`."""
    what = "agreement" if sweep.dense_accuracy is None else "accuracy"
    cost = f"costs {what} on\nat most {percent(max_drop, digits=None)} of the inputs"
    best = sweep.largest_within(max_drop)
    if best is None:
        below.plot([], [], linestyle="none", label=f"no threshold {cost}")
        return
    zeroed = percent(round(best.sparsity, 4), digits=None)
    label = f"{best.threshold:.4g} {cost};\n{zeroed} zeroed"
    above.axvline(best.threshold, color=MUTED, linestyle=":")
    below.axvline(best.threshold, color=MUTED, linestyle=":", label=label)


def plot_clusters(
    points: Iterable[Mapping[str, Any]],
    path: str | Path,
    *,
    dense: float | None = None,
    title: str | None = None,
) -> None:
    """Draw accuracy and agreement against the number of clusters, by powers of two.

    Each number is labelled with the bits per weight and the distinct values of the network.
    Several points of one number (seeds) are drawn by their median.

    Args:
        points: dicts with `clusters`, `accuracy` and `agreement` (in [0, 1], or None),
            `bits_per_weight` and `distinct`.
        path: .svg or .png.
        dense: accuracy of the dense network in [0, 1], drawn as a line.
        title: above the plot.

    Raises:
        InputError: no points, no accuracy or agreement in any of them, another suffix.
        GapruneError: matplotlib is missing, or the file cannot be written.
    """
    by_number: dict[int, list[Mapping[str, Any]]] = {}
    for point in sorted(points, key=lambda point: int(point["clusters"])):
        by_number.setdefault(int(point["clusters"]), []).append(point)
    curves = {}
    for measure in LINES:
        medians = {number: _median(of_one, measure) for number, of_one in by_number.items()}
        curves[measure] = {n: value for n, value in medians.items() if value is not None}
    if not any(curves.values()):
        raise InputError("points: none of them has an accuracy or an agreement to draw")
    with drawing(path, 9, 5) as figure:
        axes = figure.subplots()
        for measure, curve in curves.items():
            if curve:
                _draw_line(axes, measure, list(curve), list(curve.values()))
        if dense is not None:
            label = f"dense network, {percent(dense, digits=None)}"
            axes.axhline(100 * dense, color=MUTED, linewidth=1, zorder=1, label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(by_number), _tick_labels(by_number))
        axes.set_xticks([], minor=True)  # minor ticks would overlap the labels
        axes.set_xlabel("clusters of a layer's weights; bits per weight; distinct values in all")
        axes.set_ylabel("held-out inputs (%)")
        axes.legend(loc="lower right")
        if title is not None:
            axes.set_title(title)


def _draw_line(axes: Axes, measure: str, steps: Sequence[float], values: Sequence[float]) -> None:
    label, colour, style, marker = LINES[measure]
    heights = [100 * value for value in values]
    axes.plot(steps, heights, color=colour, linestyle=style, marker=marker, ms=4, label=label)


def _median(points: Iterable[Mapping[str, Any]], key: str) -> float | None:
    values = [point[key] for point in points if point[key] is not None]
    return median(values) if values else None


def _tick_labels(by_number: Mapping[int, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return the label of each number; empty if it would overlap its left neighbour."""
    labels, last = [], -math.inf
    gap = LABEL_WIDTH * math.log2(max(by_number) / min(by_number))
    for number, points in by_number.items():
        if math.log2(number) < last + gap:
            labels.append("")
            continue
        last = math.log2(number)
        bits, distinct = _median(points, "bits_per_weight"), _median(points, "distinct")
        lines = [f"{number}"]
        lines += [] if bits is None else [f"{bits:.3g} bits"]
        lines += [] if distinct is None else [f"{distinct:.6g} values"]
        labels.append("\n".join(lines))
    return labels
