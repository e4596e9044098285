"""Charts of a report: places in percent, round ticks, words, colours that can be told apart."""

from __future__ import annotations

import io
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gaprune.report.charts import MAX_POINTS, Axis, Chart, DotPlot, Point, Series, thin
from gaprune.report.images import curve, png, tiles
from gaprune.report.input_samples import certainty
from gaprune.report.palette import DARK, LIGHT, SERIES, as_css, contrast
from gaprune.report.scales import Fractions, Linear, Log, Scale, nice_ticks, short

NUMBERS = st.floats(-1e9, 1e9)
ABOVE_0 = st.floats(1e-6, 1e9)
PARTS = st.floats(0, 1)
SPANS = st.tuples(st.floats(-1e4, 1e4), st.floats(1e-2, 1e9)).map(
    lambda one: (one[0], one[0] + one[1])
)


@given(SPANS, st.integers(2, 12))
def test_ticks_are_few_round_and_evenly_spaced(span: tuple[float, float], most: int) -> None:
    """Whatever the ends, no tick lies outside and every step is 1, 2 or 5 times a power of ten."""
    low, high = span
    ticks = nice_ticks(low, high, most)
    room = 1e-6 * (high - low) + 1e-9 * max(abs(low), abs(high))
    assert len(ticks) <= most
    assert all(low - room <= one <= high + room for one in ticks)
    steps = [after - before for before, after in pairwise(ticks)]
    if steps:
        step = (ticks[-1] - ticks[0]) / len(steps)
        assert all(math.isclose(one, step, rel_tol=1e-3, abs_tol=room) for one in steps)
        leading = step / 10 ** math.floor(math.log10(step) + 1e-9)
        assert min(abs(leading - digit) for digit in (1, 2, 5, 10)) < 1e-2


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-3, 7, [-2, 0, 2, 4, 6]),
        (0, 2500, [0, 500, 1000, 1500, 2000, 2500]),
    ],
)
def test_ticks_that_anybody_would_choose(low: float, high: float, ticks: list[float]) -> None:
    """A few of them by hand."""
    assert nice_ticks(low, high) == ticks


@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_a_linear_scale_holds_what_it_was_made_around(values: list[float]) -> None:
    """All places are in percent, in the order of the values."""
    scale = Linear.around(values)
    places = [scale.at(one) for one in sorted(values)]
    assert places == sorted(places)
    assert all(0 <= one <= 100 for one in places)
    assert scale.at(scale.low) == 0
    assert scale.at(scale.high) == 100


@given(st.lists(ABOVE_0, min_size=1, max_size=20))
def test_on_a_logarithmic_scale_equal_ratios_are_equally_long(values: list[float]) -> None:
    """Its ticks are inside, few and rising."""
    scale = Log.around(values)
    places = [scale.at(one) for one in sorted(values)]
    assert places == sorted(places)
    middle = math.sqrt(scale.low * scale.high)
    assert scale.at(middle) == pytest.approx(50, abs=0.01)
    assert scale.at(0) == scale.at(-1) == 0
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 6
    assert ticks == sorted(set(ticks))


@given(st.lists(PARTS, min_size=1, max_size=20))
def test_parts_of_one_stand_apart_near_one(values: list[float]) -> None:
    """From 90 to 99 % is as far as from 99 to 99.9 %; ticks keep their distance."""
    scale = Fractions.around(values)
    assert all(0 <= scale.at(one) <= 100 for one in values)
    wide = Fractions(0.0, 0.9999)
    assert wide.at(0.99) - wide.at(0.9) == pytest.approx(wide.at(0.999) - wide.at(0.99), abs=0.01)
    places = [scale.at(one) for one in scale.ticks()]
    assert all(after - before > 10 for before, after in pairwise(places))


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=400))
def test_a_chart_draws_inside_its_frame_and_keeps_the_ends(
    values: list[tuple[float, float]],
) -> None:
    """However many points there are; the first, the last and the highest are among them."""
    listed = [Point(x, y, f"{x}, {y}") for x, y in sorted(values)]
    kept = thin(listed)
    assert kept[0] == listed[0]
    assert kept[-1] == listed[-1]
    assert max(one.y for one in kept) == max(one.y for one in listed)
    assert len(kept) <= MAX_POINTS + 1
    chart = Chart(
        "chart",
        Axis("x", Linear.around(one.x for one in listed)),
        Axis("y", Linear.around(one.y for one in listed)),
        [Series("all", listed, 9)],
    )
    (line,) = chart.lines
    assert all(0 <= point.x <= 100 and 0 <= point.y <= 100 for point in line.points)
    assert chart.left_out == len(listed) - len(line.points)
    assert 0 <= line.colour < SERIES
    assert len(chart.rows) == len(line.points)


def test_what_is_not_finite_is_not_drawn() -> None:
    """Neither a point, nor a dot, nor a series of nothing else."""
    axis = Axis("x", Linear(0, 1))
    bad = [Point(math.nan, 0.5, ""), Point(0.5, math.inf, "")]
    chart = Chart("chart", axis, axis, [Series("bad", bad, 0), Series("none", [], 1)])
    assert chart.lines == []
    plot = DotPlot("dots", "", axis, ["a", "b", "c"], [("row", [0.25, None, math.nan])])
    ((name, dots),) = plot.rows
    assert (name, [dot[:2] for dot in dots]) == ("row", [(0, 25)])


def test_larger_is_higher() -> None:
    """Places count from the top, as pictures do."""
    axis = Axis("x", Linear(0, 1))
    chart = Chart("chart", axis, axis, [Series("a", [Point(0, 0, ""), Point(1, 0.75, "")], 0)])
    assert [(point.x, point.y) for point in chart.lines[0].points] == [(0, 100), (100, 25)]
    assert chart.lines[0].path == "0,100 100,25"


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_marks_can_be_read(colours: dict[str, str]) -> None:
    """WCAG 2.2: 4.5 for text (AA), 3 for what is drawn; captions of series are text."""
    for ground in ("page", "card", "tint"):
        for text in ("ink", "soft", "accent", *(f"s{look}" for look in range(SERIES))):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for shaded in ("s0", "s1"):  # cells of the confusion are filled with up to 38 % of these
        assert contrast(colours["ink"], mixed(colours[shaded], colours["card"], 0.38)) >= 4.5
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


def mixed(one: str, other: str, part: float) -> str:
    """Return a colour between two, `part` of the first."""
    pairs = [(int(one[at : at + 2], 16), int(other[at : at + 2], 16)) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(part * a + (1 - part) * b):02x}" for a, b in pairs)


def test_every_colour_has_a_day_and_a_night() -> None:
    """And paper is never dark."""
    assert LIGHT.keys() == DARK.keys()
    assert as_css().count("@media screen") == 2


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_picture_is_read_back_by_others(channels: int) -> None:
    """Pillow sees the pixels that were written."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    read = np.asarray(Image.open(io.BytesIO(png(pixels))))
    assert np.array_equal(read.reshape(pixels.shape), pixels)


def test_tiles_lie_side_by_side() -> None:
    """Three of 2 by 2 in two columns, with a transparent line between."""
    sheet = tiles([np.full((2, 2, 4), value, np.uint8) for value in (1, 2, 3)], 2)
    assert sheet.shape == (5, 5, 4)
    assert sheet[:, :, 0].tolist() == [
        [1, 1, 0, 2, 2],
        [1, 1, 0, 2, 2],
        [0, 0, 0, 0, 0],
        [3, 3, 0, 0, 0],
        [3, 3, 0, 0, 0],
    ]


def test_a_curve_goes_from_side_to_side() -> None:
    """The largest value is on top."""
    assert curve(np.array([0, 255, 51], np.uint8)) == "0,100 50,0 100,80"


def test_axis_labels_are_short() -> None:
    """Thousands have a letter; a certainty that is nearly all is never said to be all."""
    assert (short(2500), short(-0.5)) == ("2.5k", "-0.5")
    assert (certainty(0.9999), certainty(0.42)) == (">99 %", "42 %")


def test_scales_are_one_kind() -> None:
    """Every scale places values and marks some."""
    scales: list[Scale] = [Linear(0, 1), Log(0.1, 1), Fractions(0, 0.99)]
    assert all(scale.at(0.5) > 0 and scale.ticks() for scale in scales)
