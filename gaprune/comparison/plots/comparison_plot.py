"""Accuracy against sparsity, one line for each method of a comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gaprune.comparison.plots.figure import COLOURS, MARKERS, MUTED, drawing
from gaprune.comparison.rows import MethodSummary
from gaprune.errors import InputError
from gaprune.formatting import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BOLD = "evolved"  # methods whose name begins so are drawn black and bold
GROUPS: tuple[tuple[str, Any], ...] = (  # what methods need, and the style of their lines
    ("needs the weights alone", "-"),
    ("needs calibration inputs or gradients", (0, (5, 2))),
    ("needs training of weights", (0, (1, 1.4))),
)
TICKS = (0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995)
SMALLEST = 1e-4  # smallest fraction kept, or of errors, that the axes distinguish from none


def plot_comparison(
    summaries: Sequence[MethodSummary],
    path: str | Path,
    dense: float | None,
    title: str,
    caption: str = "",
) -> None:
    """Draw the score against sparsity: medians over seeds, bars from the worst seed to the best.

    Each point is at the fraction of weights that the method really removed. Both axes are
    logarithmic, in the weights kept and in the errors made, so that 90, 95, 98 and 99 % are well
    separated. Lines are solid for methods that use the weights alone, dashed for those that need
    calibration inputs or gradients, dotted for those that train weights. The legend lists the
    methods of each kind, the best at the highest sparsity first.

    Args:
        summaries: one per method, as `summarise` sorts them.
        path: .svg or .png.
        dense: accuracy of the dense network in [0, 1], drawn as a line; None if the scores are
            agreement with it.
        title: above the plot.
        caption: below the title, small: which version and which seeds.

    Raises:
        InputError: no method has a score, or another suffix.
        GapruneError: matplotlib is missing, or the file cannot be written.
    """
    if not any(summary.cells for summary in summaries):
        raise InputError("rows: none of them has a figure to draw; their errors say why")
    # the legend lists them in this order; in a group the order stays
    summaries = sorted(summaries, key=_group)
    with drawing(path, 10, max(5.5, 1.8 + 0.21 * len(summaries))) as figure:
        axes = figure.subplots()
        _draw(axes, summaries)
        if dense is not None:
            label = f"dense network, {percent(dense, digits=None)}"
            axes.axhline(_decades(dense), color=MUTED, linewidth=1, zorder=1, label=label)
        measure = "agreement with the dense network" if dense is None else "accuracy"
        _scale(axes, summaries, measure)
        axes.set_title(title, pad=24 if caption else None)
        axes.annotate(
            caption, (0, 1), (0, 6), "axes fraction", "offset points", color=MUTED, fontsize="small"
        )
        _legend(figure, axes, summaries)


def _group(summary: MethodSummary) -> int:
    needs = summary.needs
    return 2 if needs.training else int(needs.gradients or needs.data != "none")


def _label(summary: MethodSummary) -> str:
    return summary.method if summary.cells else f"{summary.method}: no figure"


def _decades(fraction: float) -> float:
    """Return −log₁₀(1 − fraction), the position on an axis: 0.9 is at 1, 0.99 at 2."""
    return -math.log10(max(1 - fraction, SMALLEST))


def _draw(axes: Axes, summaries: Sequence[MethodSummary]) -> None:
    for index, summary in enumerate(summaries):
        cells, bold = summary.cells.values(), summary.method.startswith(BOLD)
        axes.errorbar(
            [_decades(removed) for removed in _removed(summary)],
            [_decades(cell.score) for cell in cells],
            [
                [_decades(cell.score) - _decades(cell.low) for cell in cells],
                [_decades(cell.high) - _decades(cell.score) for cell in cells],
            ],
            color="black" if bold else COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            linestyle=GROUPS[_group(summary)][1],
            linewidth=2.8 if bold else 1.4,
            markersize=6 if bold else 4.5,
            # hollow markers and caps of several widths: points at one position stay visible
            markerfacecolor="black" if bold else "none",
            elinewidth=1,
            capsize=2 + index % 4,
            zorder=4 if bold else 2,
            label=_label(summary),
        )


def _removed(summary: MethodSummary) -> list[float]:
    """Return the fraction of weights removed at each sparsity; rows without it have the asked."""
    return [cell.actual or sparsity for sparsity, cell in summary.cells.items()]


def _scale(axes: Axes, summaries: Sequence[MethodSummary], measure: str) -> None:
    removed = sorted(fraction for summary in summaries for fraction in _removed(summary))
    ticks = sorted({sparsity for summary in summaries for sparsity in summary.cells})
    axes.set_xticks([_decades(s) for s in ticks], [percent(s, digits=None) for s in ticks])
    axes.set_xlim(_decades(removed[0]) - 0.06, _decades(removed[-1]) + 0.06)
    axes.set_xlabel("weights removed (log scale of those kept)")
    low, high = axes.get_ylim()  # before ticks extend the range
    ticks = [tick for tick in TICKS if low <= _decades(tick) <= high]
    axes.set_yticks([_decades(t) for t in ticks], [percent(t, digits=None) for t in ticks])
    axes.set_ylabel(f"{measure} (log scale of errors)")
    axes.set_ylim(low, high)


def _legend(figure: Figure, axes: Axes, summaries: Sequence[MethodSummary]) -> None:
    """List the methods beside the plot, grouped by what they need."""
    drawn = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    blank = axes.plot([], [], linestyle="none")[0]
    entries: dict[str, Any] = {}
    for number, (heading, _) in enumerate(GROUPS):
        labels = [_label(summary) for summary in summaries if _group(summary) == number]
        if labels:
            entries |= {heading: blank, **{label: drawn.pop(label) for label in labels}}
    entries |= drawn  # the dense network
    legend = figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside right upper",
        fontsize="small",
        handlelength=3.2,
    )
    for text in legend.get_texts():
        if text.get_text() in dict(GROUPS) or text.get_text().startswith(BOLD):
            text.set_fontweight("bold")
