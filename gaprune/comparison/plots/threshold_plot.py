"""What one threshold on all weights does: zeros by layer above, accuracy and agreement below."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gaprune.comparison.methods.threshold import ThresholdSweep
from gaprune.comparison.plots.figure import COLOURS, MARKERS, MUTED, drawing, shades
from gaprune.errors import InputError
from gaprune.formatting import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMED = 14  # layers that fit into a legend; of more, only the first and the last are named


def plot_thresholds(
    sweep: ThresholdSweep,
    path: str | Path,
    *,
    max_drop: float | None = 0.01,
    title: str | None = None,
) -> None:
    """Draw a sweep as two plots over the same thresholds.

    Above, the fraction zeroed of every layer, dark for the first and light for the last (biases
    dashed), and of all together in bold. Below, accuracy (where there are labels) and agreement
    with the dense network.

    Args:
        sweep: from `gaprune.comparison.methods.threshold.sweep_thresholds`.
        path: .svg or .png.
        max_drop: mark the largest threshold that loses no more than this, by `largest_within`; None
            marks nothing.
        title: above the plots.

    Raises:
        InputError: a sweep without points, another suffix.
        GapruneError: matplotlib is missing, or the place cannot be written.
    """
    if not sweep.points:
        raise InputError("sweep: has no points to draw")
    with drawing(path, 9, 7) as figure:
        above, below = figure.subplots(2, 1, sharex=True)
        _layers(above, sweep)
        _quality(below, sweep)
        if max_drop is not None:
            _mark(above, below, sweep, max_drop)
        for axes in (above, below):
            axes.set_ylim(-3, 103)
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize="small")
        above.set_ylabel("zeroed (%)")
        below.set_ylabel("held-out inputs (%)")
        below.set_xlabel("threshold on |w|")
        if title is not None:
            above.set_title(title)


def _layers(axes: Axes, sweep: ThresholdSweep) -> None:
    rows = sweep.rows()
    steps = [row["threshold"] for row in rows]
    layers = list(rows[0]["zeroed"])
    for index, (layer, shade) in enumerate(zip(layers, shades(len(layers)), strict=True)):
        named = len(layers) <= NAMED or index in (0, len(layers) - 1)
        axes.plot(
            steps,
            [100 * row["zeroed"][layer] for row in rows],
            color=shade,
            linestyle="--" if layer.endswith("bias") else "-",
            marker=MARKERS[index % len(MARKERS)] if len(layers) <= NAMED else None,
            markersize=3.5,
            linewidth=1.2,
            label=layer if named else None,
        )
        if named and index == 0 and len(layers) > NAMED:
            axes.plot([], [], linestyle="none", label=f"… {len(layers) - 2} layers …")
    overall = [100 * row["sparsity"] for row in rows]
    axes.plot(steps, overall, color="black", linewidth=2.4, label="all weights", zorder=3)


def _quality(axes: Axes, sweep: ThresholdSweep) -> None:
    steps = [point.threshold for point in sweep.points]
    agreement = [100 * point.agreement for point in sweep.points]
    label = "agreement with the dense network"
    axes.plot(steps, agreement, color=COLOURS[1], linestyle="--", marker="s", ms=3.5, label=label)
    if sweep.dense_accuracy is not None:
        accuracy = [100 * (point.accuracy or 0.0) for point in sweep.points]
        axes.plot(steps, accuracy, color=COLOURS[0], marker="o", ms=3.5, label="accuracy")


def _mark(above: Axes, below: Axes, sweep: ThresholdSweep, max_drop: float) -> None:
    """Draw a line at the largest threshold that loses no more than `max_drop`."""
    what = "agreement" if sweep.dense_accuracy is None else "accuracy"
    cost = f"costs {what} on\nat most {percent(max_drop, digits=None)} of the inputs"
    found = sweep.largest_within(max_drop)
    if found is None:
        below.plot([], [], linestyle="none", label=f"no threshold {cost}")
        return
    label = f"{found.threshold:.4g} {cost};\n{percent(round(found.report.sparsity, 4), digits=None)} zeroed"
    above.axvline(found.threshold, color=MUTED, linestyle=":")
    below.axvline(found.threshold, color=MUTED, linestyle=":", label=label)
