"""Charts as data: every point has a position in percent, so that a page of any width can draw it.

Templates draw them as SVG with lengths in percent: text keeps its size on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from gaprune.formatting import number
from gaprune.report.scales import Fractions, Linear, Log, Scale

SERIES = 8  # colours s0 to s7 of `render`; later series repeat them with another marker
MAX_POINTS = 120  # of a series that are drawn

Text = Callable[[float], str]


@dataclass(frozen=True)
class Point:
    """A point of a series, in values or in percent of the chart."""

    x: float  # coordinates; in percent, from the left and from the top
    y: float
    text: str  # the tooltip
    low: float | None = None  # the ends of an error bar, or None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Points with a name and a style."""

    name: str  # in the legend
    points: Sequence[Point]  # in the order of their line
    style: int  # a number that chooses colour and marker
    joined: bool = True  # whether a line joins the points
    visible: bool = True  # whether it is drawn before the reader switches it on
    highlighted: bool = False  # whether it is the subject of the page

    @property
    def colour(self) -> int:
        """The number of the colour in the palette."""
        return self.style % SERIES

    @property
    def marker(self) -> int:
        """The number of the marker; series of the same colour have different ones."""
        # Shifted by one each round, so that no two of the first 32 series look the same.
        return (self.style + self.style // SERIES) % 4

    @property
    def path(self) -> str:
        """The `points` of an SVG polyline."""
        return " ".join(f"{point.x:g},{point.y:g}" for point in self.points)


@dataclass(frozen=True)
class Axis:
    """An axis."""

    title: str  # what it measures
    scale: Scale  # from values to positions
    text: Text = number  # formats tick labels
    ticks: Sequence[float] | None = None  # values with a tick; None: those of the scale
    exact: Text | None = None  # formats values in a table; None: as the ticks

    def describe(self, value: float) -> str:
        """Format a value for a table."""
        return (self.exact or self.text)(value)

    @property
    def label(self) -> str:
        """The title, and what a reader has to know about the scale."""
        if isinstance(self.scale, Log):
            return f"{self.title} (log scale)"
        if isinstance(self.scale, Fractions):
            return f"{self.title} (log scale of the rest)"
        return f"{self.title} (the axis does not start at 0)" if self.broken else self.title

    @property
    def broken(self) -> bool:
        """Whether the axis is linear and leaves out 0: the page marks a break at its start."""
        scale = self.scale
        return isinstance(scale, Linear) and not scale.low <= 0 <= scale.high

    @property
    def labels(self) -> list[tuple[float, str]]:
        """Position and label of every tick."""
        # A comparison marks exactly the sparsities that it ran; other axes take round values.
        values = self.scale.ticks() if self.ticks is None else self.ticks
        return [(self.scale.at(value), self.text(value)) for value in values]


@dataclass(frozen=True)
class Chart:
    """A line chart."""

    title: str  # above it
    x: Axis  # the axes
    y: Axis
    series: Sequence[Series]  # in values; points that aren't finite are left out
    note: str = ""
    # values of y with a label, drawn as horizontal lines
    references: Sequence[tuple[float, str]] = ()
    height: int = 250  # in pixels

    @cached_property
    # Hundreds of points per series would make the page large and hide the line.
    def _thinned(self) -> list[Series]:
        return [replace(series, points=thin(_finite(series.points))) for series in self.series]

    @cached_property
    def lines(self) -> list[Series]:
        """The series in percent, without empty ones."""
        return [
            replace(series, points=[self._place(point) for point in series.points])
            for series in self._thinned
            if series.points
        ]

    @property
    def reference_lines(self) -> list[tuple[float, str]]:
        """Position from the top and label of the horizontal lines."""
        return [(self._from_top(value), text) for value, text in self.references]

    @property
    def rows(self) -> list[tuple[str, str, str]]:
        """The points as a table: series, x and y."""
        return [
            (series.name, self.x.describe(point.x), self.y.describe(point.y))
            for series in self._thinned
            for point in series.points
        ]

    @property
    def left_out(self) -> int:
        """The number of finite points that aren't drawn."""
        # Points that are not finite have no position: they are neither drawn nor counted.
        finite = sum(len(_finite(series.points)) for series in self.series)
        return finite - sum(len(series.points) for series in self._thinned)

    @property
    def summary(self) -> str:
        """A description for screen readers."""
        names = ", ".join(series.name for series in self.lines)
        return f"{self.title}. {self.y.title} against {self.x.title}: {names}."

    def _from_top(self, value: float) -> float:
        # SVG counts from the top.
        return round(100 - self.y.scale.at(value), 3)

    def _place(self, point: Point) -> Point:
        ends = (point.low, point.high)
        low, high = (None if value is None else self._from_top(value) for value in ends)
        return Point(self.x.scale.at(point.x), self._from_top(point.y), point.text, low, high)


@dataclass(frozen=True)
class DotPlot:
    """Rows of dots on a common axis."""

    title: str  # above it
    note: str
    x: Axis  # the axis
    names: Sequence[str]  # of the series
    # row → one value per series; None is left out
    values: Sequence[tuple[str, Sequence[float | None]]]
    highlighted: str = ""  # the row that is the subject of the page

    @property
    def rows(self) -> list[tuple[str, list[tuple[int, float, str]]]]:
        """Name of every row, and its dots: number of the series, position and tooltip."""
        return [
            (
                name,
                [
                    (index, self.x.scale.at(value), self._tooltip(name, index, value))
                    for index, value in enumerate(values)
                    if value is not None and math.isfinite(value)
                ],
            )
            for name, values in self.values
        ]

    def _tooltip(self, name: str, index: int, value: float) -> str:
        return f"{name}, {self.names[index]}: {self.x.describe(value)}"


def thin(points: Sequence[Point]) -> list[Point]:
    """Return at most `MAX_POINTS` evenly spaced points with the first, the last and the highest."""
    if len(points) <= MAX_POINTS:
        return list(points)
    # The best point is what a reader looks for, so it is drawn even between the steps.
    top = max(range(len(points)), key=lambda index: points[index].y)
    step = (len(points) - 1) / (MAX_POINTS - 2)
    chosen = {top, *(round(step * index) for index in range(MAX_POINTS - 1))}
    return [points[index] for index in sorted(chosen)]


def _finite(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
