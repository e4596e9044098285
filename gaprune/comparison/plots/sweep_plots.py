"""Plots of sweeps: what a threshold on all weights does, and how few values a layer can share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gaprune.comparison.methods.threshold import ThresholdSweep
from gaprune.comparison.plots.figure import COLOURS, MARKERS, MUTED, drawing
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
    sweep: ThresholdSweep, path: str | Path, *, max_drop: float, title: str
) -> None:
    """Draw a sweep of thresholds as two plots over one axis, as .svg or .png.

    Above, the fraction zeroed of every layer, dark for the first and light for the last (biases
    dashed), and of all together in bold. Below, accuracy (if there are labels) and agreement. The
    largest threshold that loses no more than `max_drop` is marked.

    Raises:
        InputError: another suffix.
        GapruneError: matplotlib is missing, or the file cannot be written.
    """
    steps = [point.threshold for point in sweep.points]
    with drawing(path, 9, 7) as figure:
        above, below = figure.subplots(2, 1, sharex=True)
        _draw_layers(above, steps, sweep.rows())
        _draw_line(below, "agreement", steps, [point.agreement for point in sweep.points])
        if sweep.dense_accuracy is not None:
            _draw_line(below, "accuracy", steps, [point.accuracy or 0.0 for point in sweep.points])
        _mark_limit(above, below, sweep, max_drop)
        for axes in (above, below):
            axes.set_ylim(-3, 103)
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize="small")
        above.set_ylabel("zeroed (%)")
        below.set_ylabel("held-out inputs (%)")
        below.set_xlabel("threshold on |w|")
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
    points: Iterable[Mapping[str, Any]], path: str | Path, *, dense: float | None, title: str
) -> None:
    """Draw accuracy and agreement against the number of clusters, by powers of two.

    Each number is labelled with the bits per weight and the distinct values of the network.

    Args:
        points: rows of a `ClusterSweep`, one for each number of clusters.
        path: .svg or .png.
        dense: accuracy of the dense network in [0, 1], drawn as a line; None without labels.
        title: above the plot.

    Raises:
        InputError: another suffix.
        GapruneError: matplotlib is missing, or the file cannot be written.
    """
    points = sorted(points, key=lambda point: int(point["clusters"]))
    numbers = [point["clusters"] for point in points]
    with drawing(path, 9, 5) as figure:
        axes = figure.subplots()
        for measure in LINES if dense is not None else ("agreement",):
            _draw_line(axes, measure, numbers, [point[measure] for point in points])
        if dense is not None:
            label = f"dense network, {percent(dense, digits=None)}"
            axes.axhline(100 * dense, color=MUTED, linewidth=1, zorder=1, label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(numbers, _tick_labels(points))
        axes.set_xticks([], minor=True)  # minor ticks would overlap the labels
        axes.set_xlabel("clusters of a layer's weights; bits per weight; distinct values in all")
        axes.set_ylabel("held-out inputs (%)")
        axes.legend(loc="lower right")
        axes.set_title(title)


def _draw_line(axes: Axes, measure: str, steps: Sequence[float], values: Sequence[float]) -> None:
    label, colour, style, marker = LINES[measure]
    heights = [100 * value for value in values]
    axes.plot(steps, heights, color=colour, linestyle=style, marker=marker, ms=4, label=label)


def _tick_labels(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the label of each number; empty if it would overlap its left neighbour."""
    labels, last = [], -math.inf
    gap = LABEL_WIDTH * math.log2(points[-1]["clusters"] / points[0]["clusters"])
    for point in points:
        position = math.log2(point["clusters"])
        if position < last + gap:
            labels.append("")
            continue
        last, bits, distinct = position, point["bits_per_weight"], point["distinct"]
        labels.append(f"{point['clusters']}\n{bits:.3g} bits\n{distinct:.6g} values")
    return labels
