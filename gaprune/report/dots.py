"""Dot plots as plain data: a row a name, a dot a series, one axis for all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gaprune.report.charts import Axis


@dataclass(frozen=True)
class Dot:
    """One value in a row: the series it belongs to, its place from the left, and words."""

    series: int
    x: float
    text: str


@dataclass(frozen=True)
class DotRow:
    """A row of a dot plot: a name, and dots on a common axis."""

    name: str
    dots: tuple[Dot, ...]
    strong: bool = False


@dataclass(frozen=True)
class DotPlot:
    """Rows of dots under one axis.

    Attributes:
        title, note: above and below it.
        x: the axis.
        names: of the series; a dot names one by its number.
        rows: from top to bottom.
    """

    title: str
    note: str
    x: Axis
    names: tuple[str, ...]
    rows: tuple[DotRow, ...]


def dot_plot(
    frame: tuple[str, str, Axis],
    names: Sequence[str],
    rows: Iterable[tuple[str, Sequence[float | None]]],
    *,
    strong: str | None = None,
) -> DotPlot:
    """Give every value of every row its place.

    Args:
        frame: title, note and axis.
        names: of the series.
        rows: a name, and one value per series; None is left out.
        strong: the name of the row that the page is about.
    """
    title, note, axis = frame
    made = []
    for name, values in rows:
        dots = tuple(
            Dot(number, axis.scale.at(value), f"{name}, {names[number]}: {axis.say(value)}")
            for number, value in enumerate(values)
            if value is not None and math.isfinite(value)
        )
        made.append(DotRow(name, dots, name == strong))
    return DotPlot(title, note, axis, tuple(names), tuple(made))
