"""Accuracy against sparsity, one line for each method of a comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from gaprune.comparison.plots.figure import COLOURS, MARKERS, MUTED, drawing
from gaprune.errors import InputError
from gaprune.formatting import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEASURES = {"accuracy": "accuracy", "agreement": "agreement with the dense network"}
BOLD = "evolved"  # methods whose name begins so are drawn black and bold
GROUPS: tuple[tuple[str, Any], ...] = (  # what methods need, and the style of their lines
    ("needs the weights alone", "-"),
    ("needs calibration inputs or gradients", (0, (5, 2))),
    ("needs training of weights", (0, (1, 1.4))),
)
TICKS = (0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995)
SMALLEST = 1e-4  # smallest fraction kept, or of errors, that the axes distinguish from none


def plot_comparison(
    rows: Iterable[Mapping[str, Any]],
    path: str | Path,
    *,
    dense: float | None = None,
    title: str | None = None,
) -> None:
    """Draw accuracy against sparsity: medians over seeds, bars from the worst seed to the best.

    Both axes are logarithmic, in the weights kept and in the errors made, so that 90, 95, 98 and
    99 % are well separated. Lines are solid for methods that use the weights alone, dashed for
    those that need calibration inputs or gradients, dotted for those that train weights. The
    legend lists the methods of each kind, the best at the highest sparsity first. Without any
    accuracy, agreement with the dense network is drawn.

    Args:
        rows: `gaprune.comparison` rows of one target as plain data: dicts with `target`,
            `sparsity`, `method`, `needs` (`data`, `gradients`, `training`), `accuracy` and
            `agreement` in [0, 1] or None.
        path: .svg or .png.
        dense: accuracy of the dense network in [0, 1], drawn as a line.
        title: above the plot; default: the target's name.

    Raises:
        InputError: no rows, rows of several targets, no score in any row, another suffix.
        GapruneError: matplotlib is missing, or the file cannot be written.
    """
    rows = list(rows)
    targets = sorted({row["target"] for row in rows})
    if len(targets) != 1:
        names = ", ".join(targets) or "no rows"
        raise InputError(f"rows: must be of one target, got {names}; draw one plot for each")
    measure = next((m for m in MEASURES if any(row[m] is not None for row in rows)), None)
    if measure is None:
        raise InputError("rows: none of them has a figure to draw; their errors say why")
    # the legend lists them in this order
    lines = sorted(_lines(rows, measure), key=lambda line: line.rank)
    with drawing(path, 10, max(5.5, 1.8 + 0.21 * len(lines))) as figure:
        axes = figure.subplots()
        _draw(axes, lines)
        if dense is not None and measure == "accuracy":
            label = f"dense network, {percent(dense, digits=None)}"
            axes.axhline(_decades(dense), color=MUTED, linewidth=1, zorder=1, label=label)
        _scale(axes, sorted({row["sparsity"] for row in rows}), MEASURES[measure])
        axes.set_title(targets[0] if title is None else title)
        _legend(figure, axes, lines)


@dataclass(frozen=True)
class _Line:
    """The scores of one method: sparsity → one for each seed, in [0, 1]."""

    method: str
    group: int
    scores: Mapping[float, Sequence[float]]

    @property
    def bold(self) -> bool:
        return self.method.startswith(BOLD)

    @property
    def label(self) -> str:
        return self.method if self.scores else f"{self.method}: no figure"

    @property
    def rank(self) -> tuple[int, float, float]:
        """Sort by group, then by the highest sparsity, then by the score there."""
        last = max(self.scores, default=0.0)
        return self.group, -last, -median(self.scores[last]) if self.scores else 0.0


def _lines(rows: Sequence[Mapping[str, Any]], measure: str) -> list[_Line]:
    scores: dict[str, dict[float, list[float]]] = {}
    groups = {row["method"]: _group(row["needs"]) for row in rows}
    for row in rows:
        of_method = scores.setdefault(row["method"], {})
        if row[measure] is not None:
            of_method.setdefault(row["sparsity"], []).append(row[measure])
    return [_Line(name, groups[name], dict(sorted(s.items()))) for name, s in scores.items()]


def _group(needs: Mapping[str, Any]) -> int:
    return 2 if needs["training"] else int(needs["gradients"] or needs["data"] != "none")


def _decades(fraction: float) -> float:
    """Return −log₁₀(1 − fraction), the position on an axis: 0.9 is at 1, 0.99 at 2."""
    return -math.log10(max(1 - fraction, SMALLEST))


def _draw(axes: Axes, lines: Sequence[_Line]) -> None:
    for index, line in enumerate(lines):
        shift = 0.03 * (index / max(len(lines) - 1, 1) - 0.5)  # keeps bars from overlapping
        middles = [_decades(median(seeds)) for seeds in line.scores.values()]
        lows = [_decades(min(seeds)) for seeds in line.scores.values()]
        highs = [_decades(max(seeds)) for seeds in line.scores.values()]
        axes.errorbar(
            [_decades(sparsity) + shift for sparsity in line.scores],
            middles,
            [
                [middle - low for middle, low in zip(middles, lows, strict=True)],
                [high - middle for middle, high in zip(middles, highs, strict=True)],
            ],
            color="black" if line.bold else COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            linestyle=GROUPS[line.group][1],
            linewidth=2.8 if line.bold else 1.4,
            markersize=6 if line.bold else 4.5,
            elinewidth=1,
            zorder=4 if line.bold else 2,
            label=line.label,
        )


def _scale(axes: Axes, sparsities: Sequence[float], measure: str) -> None:
    axes.set_xticks(
        [_decades(s) for s in sparsities], [percent(s, digits=None) for s in sparsities]
    )
    axes.set_xlim(_decades(sparsities[0]) - 0.06, _decades(sparsities[-1]) + 0.06)
    axes.set_xlabel("weights removed (log scale of those kept)")
    low, high = axes.get_ylim()  # before ticks extend the range
    ticks = [tick for tick in TICKS if low <= _decades(tick) <= high]
    axes.set_yticks([_decades(t) for t in ticks], [percent(t, digits=None) for t in ticks])
    axes.set_ylabel(f"{measure} (log scale of errors)")
    axes.set_ylim(low, high)


def _legend(figure: Figure, axes: Axes, lines: Sequence[_Line]) -> None:
    """List the methods beside the plot, grouped by what they need."""
    drawn = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    blank = axes.plot([], [], linestyle="none")[0]
    entries: dict[str, Any] = {}
    for number, (heading, _) in enumerate(GROUPS):
        labels = [line.label for line in lines if line.group == number]
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
