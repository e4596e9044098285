"""Accuracy against the number of values that the weights of a layer share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from gaprune.comparison.plots.figure import COLOURS, MUTED, drawing
from gaprune.errors import InputError
from gaprune.formatting import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CROWDED = 0.09  # of the axis: the width of a label
LINES = {  # what is drawn, if any point has it: label, colour, line, marker
    "accuracy": ("accuracy", COLOURS[0], "-", "o"),
    "agreement": ("agreement with the dense network", COLOURS[1], "--", "s"),
}


def plot_clusters(
    points: Iterable[Mapping[str, Any]],
    path: str | Path,
    *,
    dense: float | None = None,
    title: str | None = None,
) -> None:
    """Draw accuracy and agreement against the number of clusters, by powers of two.

    Under each number stand the bits that a weight then takes and the distinct values that the
    network holds. Several points of one number (seeds) are drawn by their median.

    Args:
        points: dicts with `clusters`, `accuracy` and `agreement` (in [0, 1], or None),
            `bits_per_weight` and `distinct`.
        path: .svg or .png.
        dense: accuracy of the dense network in [0, 1], drawn as a line.
        title: above the plot.

    Raises:
        InputError: no points, no figure in any of them, another suffix.
        GapruneError: matplotlib is missing, or the place cannot be written.
    """
    by_number: dict[int, list[Mapping[str, Any]]] = {}
    for point in sorted(points, key=lambda point: int(point["clusters"])):
        by_number.setdefault(int(point["clusters"]), []).append(point)
    if not any(
        point[key] is not None for own in by_number.values() for point in own for key in LINES
    ):
        raise InputError("points: none of them has an accuracy or an agreement to draw")
    with drawing(path, 9, 5) as figure:
        axes = figure.subplots()
        for key in LINES:
            _draw(axes, key, {number: _median(own, key) for number, own in by_number.items()})
        if dense is not None:
            label = f"dense network, {percent(dense, digits=None)}"
            axes.axhline(100 * dense, color=MUTED, linewidth=1, zorder=1, label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(by_number), _ticks(by_number))
        axes.set_xticks([], minor=True)
        axes.set_xlabel("clusters of a layer's weights; bits a weight; distinct values in all")
        axes.set_ylabel("held-out inputs (%)")
        axes.legend(loc="lower right")
        if title is not None:
            axes.set_title(title)


def _draw(axes: Axes, key: str, middles: Mapping[int, float | None]) -> None:
    known = {number: 100 * middle for number, middle in middles.items() if middle is not None}
    label, colour, style, marker = LINES[key]
    if known:
        axes.plot(
            list(known),
            list(known.values()),
            color=colour,
            linestyle=style,
            marker=marker,
            label=label,
        )


def _median(points: Iterable[Mapping[str, Any]], key: str) -> float | None:
    values = [point[key] for point in points if point[key] is not None]
    return median(values) if values else None


def _ticks(by_number: Mapping[int, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return the text under each number; what would run into its left neighbour has none."""
    texts, last = [], -math.inf
    gap = CROWDED * math.log2(max(by_number) / min(by_number))
    for number, points in by_number.items():
        free = math.log2(number) >= last + gap
        texts.append(_tick(number, points) if free else "")
        last = math.log2(number) if free else last
    return texts


def _tick(number: int, points: Iterable[Mapping[str, Any]]) -> str:
    bits, distinct = _median(points, "bits_per_weight"), _median(points, "distinct")
    lines = [f"{number}"]
    if bits is not None:
        lines.append(f"{bits:.3g} bits")
    if distinct is not None:
        lines.append(f"{distinct:.6g} values")
    return "\n".join(lines)
