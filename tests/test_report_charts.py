"""Charts of a report: positions in percent, round ticks, readable colours, images."""

from __future__ import annotations

import io
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gaprune.report.charts import MAX_POINTS, SERIES, Axis, Chart, DotPlot, Point, Series, thin
from gaprune.report.classes import MAX_CLASSES, class_accuracies
from gaprune.report.images import curve, png, tiles
from gaprune.report.input_samples import certainty
from gaprune.report.render import DARK, LIGHT, as_css
from gaprune.report.scales import Fractions, Linear, Log, nice_ticks, short

NUMBERS = st.floats(-1e9, 1e9)
SPANS = st.tuples(st.floats(-1e4, 1e4), st.floats(1e-2, 1e9)).map(lambda s: (s[0], s[0] + s[1]))
UNIT = Axis("x", Linear(0, 1))


@given(SPANS, st.integers(2, 12))
def test_ticks_are_few_round_and_evenly_spaced(span: tuple[float, float], most: int) -> None:
    """No tick lies outside the ends, and the step is 1, 2 or 5 times a power of ten."""
    low, high = span
    ticks = nice_ticks(low, high, most)
    tolerance = 1e-6 * (high - low) + 1e-9 * max(abs(low), abs(high))
    assert len(ticks) <= most
    assert all(low - tolerance <= tick <= high + tolerance for tick in ticks)
    steps = [after - before for before, after in pairwise(ticks)]
    if steps:
        step = (ticks[-1] - ticks[0]) / len(steps)
        assert all(math.isclose(s, step, rel_tol=1e-3, abs_tol=tolerance) for s in steps)
        leading = step / 10 ** math.floor(math.log10(step) + 1e-9)
        assert min(abs(leading - digit) for digit in (1, 2, 5, 10)) < 1e-2


@pytest.mark.parametrize(
    ("kind", "values"),
    [(Linear, NUMBERS), (Log, st.floats(1e-6, 1e9)), (Fractions, st.floats(0, 1))],
)
@given(data=st.data())
def test_scales_keep_the_order_of_values(
    kind: type[Linear | Log | Fractions], values: st.SearchStrategy[float], data: st.DataObject
) -> None:
    """Positions are in [0, 100] and rise with the values; ticks rise and lie inside."""
    sample = sorted(data.draw(st.lists(values, min_size=1, max_size=20)))
    scale = kind.around(sample)
    positions = [scale.at(value) for value in sample]
    assert positions == sorted(positions)
    assert all(0 <= position <= 100 for position in positions)
    assert (scale.at(scale.low), scale.at(scale.high)) == (0, 100)
    ticks = scale.ticks()
    assert len(ticks) <= 7
    assert ticks == sorted(set(ticks))


def test_logarithmic_scales_show_ratios() -> None:
    """Equal ratios, of the value or of its distance from 1, have equal lengths."""
    scale = Log(0.1, 10)
    assert scale.at(1) == pytest.approx(50, abs=0.01)
    assert scale.at(0) == scale.at(-1) == 0
    wide = Fractions(0.0, 0.9999)
    assert wide.at(0.99) - wide.at(0.9) == pytest.approx(wide.at(0.999) - wide.at(0.99), abs=0.01)
    assert all(b - a > 10 for a, b in pairwise(wide.at(tick) for tick in wide.ticks()))


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=400))
def test_a_chart_draws_inside_its_frame(values: list[tuple[float, float]]) -> None:
    """A long series is thinned, but keeps its first, last and highest point."""
    points = [Point(x, y, f"{x}, {y}") for x, y in sorted(values)]
    thinned = thin(points)
    assert (thinned[0], thinned[-1]) == (points[0], points[-1])
    assert max(point.y for point in thinned) == max(point.y for point in points)
    assert len(thinned) <= MAX_POINTS + 1
    x = Axis("x", Linear.around(point.x for point in points))
    y = Axis("y", Linear.around(point.y for point in points))
    chart = Chart("chart", x, y, [Series("all", points, 9)])
    (line,) = chart.lines
    assert all(0 <= point.x <= 100 and 0 <= point.y <= 100 for point in line.points)
    assert chart.left_out == len(points) - len(line.points)
    assert 0 <= line.colour < SERIES
    assert len(chart.rows) == len(line.points)


def test_values_that_are_not_finite_are_not_drawn() -> None:
    """Points, dots and series without a finite value are left out."""
    bad = [Point(math.nan, 0.5, ""), Point(0.5, math.inf, "")]
    chart = Chart("chart", UNIT, UNIT, [Series("bad", bad, 0), Series("none", [], 1)])
    assert (chart.lines, chart.rows, chart.left_out) == ([], [], 0)
    plot = DotPlot("dots", "", UNIT, ["a", "b", "c"], [("row", [0.25, None, math.nan])])
    ((name, dots),) = plot.rows
    assert (name, [dot[:2] for dot in dots]) == ("row", [(0, 25)])


def test_larger_values_are_drawn_higher() -> None:
    """Positions count from the top, as in SVG."""
    chart = Chart("chart", UNIT, UNIT, [Series("a", [Point(0, 0, ""), Point(1, 0.75, "")], 0)])
    assert [(point.x, point.y) for point in chart.lines[0].points] == [(0, 100), (100, 25)]
    assert chart.lines[0].path == "0,100 100,25"


def luminance(colour: str) -> float:
    """Return the relative luminance of `#rrggbb` (WCAG 2.2)."""
    parts = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    """Return the contrast ratio of two colours, 1 to 21 (WCAG 2.2, section 1.4.3)."""
    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def mixed(first: str, second: str, part: float) -> str:
    """Return a colour between two, `part` of the first."""
    pairs = [(int(first[at : at + 2], 16), int(second[at : at + 2], 16)) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(part * a + (1 - part) * b):02x}" for a, b in pairs)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_have_enough_contrast(colours: dict[str, str]) -> None:
    """Text and series have a contrast of at least 4.5 (WCAG 2.2, AA) in both themes."""
    for background in ("page", "card", "tint"):
        for text in ("ink", "soft", "accent", *(f"s{style}" for style in range(SERIES))):
            assert contrast(colours[text], colours[background]) >= 4.5, (text, background)
    for shaded in ("s0", "s1"):  # cells of confusion matrices are filled with up to 38 % of these
        assert contrast(colours["ink"], mixed(colours[shaded], colours["card"], 0.38)) >= 4.5
    assert LIGHT.keys() == DARK.keys()
    assert as_css().count("@media screen") == 2  # paper is never dark


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_files_are_read_by_pillow(channels: int) -> None:
    """The pixels come back as they were written."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    decoded = np.asarray(Image.open(io.BytesIO(png(pixels))))
    assert np.array_equal(decoded.reshape(pixels.shape), pixels)


def test_tiles_and_curves() -> None:
    """Tiles lie in rows with a transparent gap; a curve spans its box, the largest value on top."""
    sheet = tiles([np.full((2, 2, 4), value, np.uint8) for value in (1, 2, 3)], 2)
    top, bottom = [1, 1, 0, 2, 2], [3, 3, 0, 0, 0]
    assert sheet[:, :, 0].tolist() == [top, top, [0] * 5, bottom, bottom]
    assert curve(np.array([0, 255, 51], np.uint8)) == "0,100 50,0 100,80"


def test_labels_are_short_and_never_overstate() -> None:
    """Thousands have a letter, and a probability below 1 is never printed as 100 %."""
    assert (short(2500), short(-0.5)) == ("2.5k", "-0.5")
    assert (certainty(0.9999), certainty(0.42)) == (">99 %", "42 %")


MANY = 3 * MAX_CLASSES


@pytest.mark.parametrize(
    ("dense", "pruned", "labels", "unchanged"),
    [
        ([3, 5, 4], [3, 1, 5], ["1", "0", "2"], ""),
        ([4] * MANY, [4] * 7 + [0, 4, 5] + [4] * (MANY - 10), ["7", "9"], str(MANY - 2)),
        ([4] * (MANY + 1), [3] * MANY + [4], list(map(str, range(MAX_CLASSES))), "1 did"),
    ],
    ids=["few", "many", "too many changed"],
)
def test_classes_of_the_largest_loss_come_first(
    dense: list[int], pruned: list[int], labels: list[str], unchanged: str
) -> None:
    """All of few classes are listed; of many, those that changed, and the others are counted."""
    correct = {"dense": dense, "pruned": pruned}
    result = class_accuracies({"totals": [5] * len(dense), "correct": correct})
    assert result is not None
    rows, rest = result
    assert [row[0] for row in rows] == labels
    assert unchanged in rest
    assert (rest == "") == (unchanged == "")
