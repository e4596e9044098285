"""Charts as plain data: every point has its place in percent, so a page of any width can draw it.

Templates draw them as SVG whose lengths are percentages: text keeps its size on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from gaprune.formatting import number
from gaprune.report.palette import SERIES
from gaprune.report.scales import Scale

MOST_POINTS = 120  # of one series that are drawn

Text = Callable[[float], str]


@dataclass(frozen=True)
class Point:
    """A value at a place.

    Attributes:
        x, y: values, finite.
        text: what a reader is told who points at it.
        low, high: the spread, or None.
    """

    x: float
    y: float
    text: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Points with a name and a look.

    Attributes:
        name: as the reader sees it.
        points: in the order of their line.
        look: number of colour and mark.
        joined: whether a line joins them.
        shown: whether it is there before the reader asks.
        strong: whether it is what the page is about.
    """

    name: str
    points: Sequence[Point]
    look: int
    joined: bool = True
    shown: bool = True
    strong: bool = False


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        title: what it measures.
        scale: from values to places.
        text: from values to words.
        ticks: values that are marked; None: those of the scale.
        exact: from values to words in a table; None: as on the axis.
    """

    title: str
    scale: Scale
    text: Text = number
    ticks: Sequence[float] | None = None
    exact: Text | None = None

    def say(self, value: float) -> str:
        """Return a value in words, as a table has it."""
        return (self.exact or self.text)(value)

    @property
    def marks(self) -> list[tuple[float, str]]:
        """Return place and words of every tick."""
        values = self.scale.ticks() if self.ticks is None else self.ticks
        return [(self.scale.at(value), self.text(value)) for value in values]


@dataclass(frozen=True)
class Spot:
    """A point where it is drawn: percent from the left and from the top."""

    x: float
    y: float
    text: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Drawn:
    """A series where it is drawn."""

    name: str
    look: int
    mark: int
    spots: tuple[Spot, ...]
    joined: bool
    shown: bool
    strong: bool

    @property
    def path(self) -> str:
        """The corners of its line, as `points` of a polyline in a box of 100 by 100."""
        return " ".join(f"{spot.x:g},{spot.y:g}" for spot in self.spots)


@dataclass(frozen=True)
class Rule:
    """A horizontal line across the chart: what is to be beaten, or reached."""

    y: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A chart ready to be drawn.

    Attributes:
        title, note: above and below it.
        x, y: the axes.
        series: where they are drawn.
        rules: horizontal lines, in percent from the top.
        height: in pixels.
        head, rows: the same as a table.
        left_out: points that are not drawn, for there are too many.
    """

    title: str
    note: str
    x: Axis
    y: Axis
    series: tuple[Drawn, ...]
    rules: tuple[Rule, ...] = ()
    height: int = 280
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    left_out: int = 0

    @property
    def summary(self) -> str:
        """What somebody is told who cannot see it."""
        names = ", ".join(series.name for series in self.series)
        return f"{self.title}. {self.y.title} against {self.x.title}: {names}. The table has all."


@dataclass(frozen=True)
class Frame:
    """What a chart is about: its words, axes and lines to compare with.

    Attributes:
        title, note: above and below it.
        x, y: the axes.
        rules: values with words; drawn across the chart.
        height: in pixels.
    """

    title: str
    x: Axis
    y: Axis
    note: str = ""
    rules: Sequence[tuple[float, str]] = ()
    height: int = 280


def draw(frame: Frame, series: Iterable[Series]) -> Chart:
    """Give every point its place; what is not finite is left out."""
    listed = [(one, _finite(one.points)) for one in series]
    drawn = tuple(_drawn(one, thinned(points), frame) for one, points in listed)
    count = sum(len(points) for _, points in listed) - sum(len(one.spots) for one in drawn)
    return Chart(
        title=frame.title,
        note=frame.note,
        x=frame.x,
        y=frame.y,
        series=tuple(one for one in drawn if one.spots),
        rules=tuple(Rule(_down(frame.y, value), text) for value, text in frame.rules),
        height=frame.height,
        head=("series", frame.x.title, frame.y.title),
        rows=tuple(
            (one.name, frame.x.say(point.x), frame.y.say(point.y))
            for one, points in listed
            for point in thinned(points)
        ),
        left_out=count,
    )


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return at most so many points, evenly chosen: the first, the last and the highest stay."""
    if len(points) <= most:
        return list(points)
    top = max(range(len(points)), key=lambda index: points[index].y)
    step = (len(points) - 1) / (most - 2)
    chosen = {top, *(round(step * number) for number in range(most - 1))}
    return [points[index] for index in sorted(chosen)]


def _finite(points: Iterable[Point]) -> list[Point]:
    return [one for one in points if math.isfinite(one.x) and math.isfinite(one.y)]


def _down(axis: Axis, value: float) -> float:
    return round(100 - axis.scale.at(value), 3)


def _drawn(series: Series, points: Sequence[Point], frame: Frame) -> Drawn:
    x, y = frame.x, frame.y
    return Drawn(
        name=series.name,
        look=series.look % SERIES,
        mark=(series.look + series.look // SERIES) % 4,
        spots=tuple(
            Spot(
                x.scale.at(one.x),
                _down(y, one.y),
                one.text,
                None if one.low is None else _down(y, one.low),
                None if one.high is None else _down(y, one.high),
            )
            for one in points
        ),
        joined=series.joined,
        shown=series.shown,
        strong=series.strong,
    )
