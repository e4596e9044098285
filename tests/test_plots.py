"""Plots, read back from the SVG files: what is written, where it stands, how lines look."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
import pytest

from gaprune.comparison.methods.threshold import SparsityReport, ThresholdPoint, ThresholdSweep
from gaprune.comparison.plots.comparison_plot import plot_comparison
from gaprune.comparison.plots.sweep_plots import plot_clusters, plot_thresholds
from gaprune.errors import GapruneError, InputError
from gaprune.records import LayerCount

SVG = "{http://www.w3.org/2000/svg}"
WEIGHTS = {"data": "none", "labels": False, "gradients": False, "training": False}
CALIBRATION = {**WEIGHTS, "data": "procedural"}
GRADIENTS = {**WEIGHTS, "gradients": True}
TRAINED = {"data": "labelled", "labels": True, "gradients": True, "training": True}
SPARSITIES = (0.9, 0.95, 0.98, 0.99)


class Picture:
    """An SVG file: its texts with their places, its lines with their styles."""

    def __init__(self, path: Path) -> None:
        self.root = ET.parse(path).getroot()  # noqa: S314 - written by the test itself
        self.texts = [element.text or "" for element in self.root.iter(f"{SVG}text")]

    def lines(self) -> Iterator[tuple[dict[str, str], list[tuple[float, float]]]]:
        """Yield style and points of every stroke that is clipped to the axes: data, and grid."""
        for element in self.root.iter(f"{SVG}path"):
            if "clip-path" in element.attrib:
                style = dict(
                    part.split(": ") for part in element.attrib["style"].rstrip(";").split("; ")
                )
                numbers = [float(n) for n in re.findall(r"-?[\d.]+", element.attrib["d"])]
                yield style, list(zip(numbers[::2], numbers[1::2], strict=True))

    def data(self, count: int) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        """Return the lines of `count` points that are wider than the grid."""
        return [
            (style, points)
            for style, points in self.lines()
            if len(points) == count and float(style["stroke-width"]) > 1
        ]


def row(
    method: str, sparsity: float, accuracy: float | None, seed: int = 0, **more: Any
) -> dict[str, Any]:
    """Return a row of a comparison as plain data."""
    return {
        "target": "lenet",
        "sparsity": sparsity,
        "method": method,
        "seed": seed,
        "needs": WEIGHTS,
        "accuracy": accuracy,
        "agreement": accuracy,
        **more,
    }


METHODS: dict[str, tuple[dict[str, Any], tuple[float | None, ...]]] = {
    "magnitude": (WEIGHTS, (0.98, 0.95, 0.6, 0.2)),
    "lamp": (WEIGHTS, (0.97, 0.96, 0.8, 0.5)),
    "wanda": (CALIBRATION, (0.98, 0.97, 0.9, 0.6)),
    "synflow": (GRADIENTS, (0.9, 0.8, 0.7, 0.4)),
    "evolved": (CALIBRATION, (0.985, 0.98, 0.97, 0.9)),
    "fine-tuned": (TRAINED, (0.99, 0.99, 0.985, 0.98)),
    "slimming": (TRAINED, (0.97, 0.95, None, None)),
    "failed": (TRAINED, (None, None, None, None)),
}
ROWS = [
    row(method, sparsity, accuracy, needs=needs)
    for method, (needs, accuracies) in METHODS.items()
    for sparsity, accuracy in zip(SPARSITIES, accuracies, strict=True)
]


def comparison(tmp_path: Path, rows: list[Any], **how: Any) -> Picture:
    """Draw a comparison and read it back."""
    plot_comparison(rows, tmp_path / "plot.svg", **how)
    return Picture(tmp_path / "plot.svg")


def test_methods_are_listed_by_what_they_need_in_the_order_of_their_lines(tmp_path: Path) -> None:
    """The best at the highest sparsity first; what stops earlier, and what fails, last."""
    texts = comparison(tmp_path, ROWS, dense=0.9905).texts
    start = texts.index("needs the weights alone")
    assert texts[start:] == [
        "needs the weights alone",
        "lamp",
        "magnitude",
        "needs calibration inputs or gradients",
        "evolved",
        "wanda",
        "synflow",
        "needs training of weights",
        "fine-tuned",
        "slimming",
        "failed: no figure",
        "dense network, 99.05 %",
    ]
    assert {"lenet", "accuracy (log scale of errors)"} < set(texts[:start])


def test_sparsities_and_accuracies_stand_apart_by_their_logarithms(tmp_path: Path) -> None:
    """From 90 to 99 % is a decade on both axes, from 90 to 95 % the same part of it."""
    picture = comparison(tmp_path, [row("a", s, s) for s in (*SPARSITIES, 0.995)], title="")
    ticks = [e for e in picture.root.iter(f"{SVG}text") if (e.text or "").endswith(" %")]
    across = {e.text: float(e.attrib["x"]) for e in ticks[:5]}
    upward = {e.text: float(e.attrib["y"]) for e in ticks[5:]}
    for places in (across, upward):
        decade = places["99 %"] - places["90 %"]
        for sparsity in (*SPARSITIES, 0.995):
            place = (places[f"{100 * sparsity:g} %"] - places["90 %"]) / decade
            assert place == pytest.approx(math.log10(0.1 / (1 - sparsity)), abs=1e-4)


def test_points_stand_where_the_axes_say(tmp_path: Path) -> None:
    """The line of one method goes through its ticks; three seeds make a median and a bar."""
    rows = [row("a", s, s) for s in SPARSITIES]
    rows += [row("a", 0.98, accuracy, seed) for seed, accuracy in ((1, 0.9), (2, 0.99))]
    picture = comparison(tmp_path, rows)
    ticks = [e for e in picture.root.iter(f"{SVG}text") if (e.text or "").endswith(" %")]
    across = [float(e.attrib["x"]) for e in ticks[:4]]
    upward = {e.text: float(e.attrib["y"]) for e in ticks[4:]}
    ((_, points),) = picture.data(4)
    shift = points[0][0] - across[0]
    assert [x - shift for x, _ in points] == pytest.approx(across, abs=0.01)
    rise = upward["90 %"] - points[0][1]  # a label stands below its tick
    heights = [upward[f"{100 * s:g} %"] - rise for s in SPARSITIES]
    assert [y for _, y in points] == pytest.approx(heights, abs=0.01)
    bars = [p for style, p in picture.lines() if len(p) == 2 and p[0][0] == points[2][0]]
    assert sorted(y for _, y in bars[0]) == pytest.approx(
        [upward["99 %"] - rise, upward["90 %"] - rise], abs=0.01
    )


def test_lines_are_solid_dashed_or_dotted_by_need_and_evolved_is_bold(tmp_path: Path) -> None:
    """Black and bold for evolved masks; no two others share colour and dashes."""
    drawn = comparison(tmp_path, ROWS).data(4)
    styles = [style for style, _ in drawn]
    bold = [style for style in styles if float(style["stroke-width"]) > 2]
    assert len(bold) == 1
    assert bold[0]["stroke"] == "#000000"
    assert "stroke-dasharray" in bold[0]
    dashes = [style.get("stroke-dasharray") for style in styles if style not in bold]
    assert dashes[:2] == [None, None]
    assert [dashes.count(kind) for kind in dict.fromkeys(dashes)] == [2, 2, 1]
    assert len({(style["stroke"], style.get("stroke-dasharray")) for style in styles}) == 6


def test_many_methods_have_marks_of_their_own(tmp_path: Path) -> None:
    """25 lines: colour and marker together tell all of them apart."""
    rows = [row(f"m{i:02}", s, s - i / 100) for i in range(25) for s in SPARSITIES]
    picture = comparison(tmp_path, rows)
    marks = set()
    for group in picture.root.iter(f"{SVG}g"):
        uses = group.findall(f"{SVG}g/{SVG}use")
        if group.attrib.get("id", "").startswith("line2d") and len(uses) == 4:
            style = uses[0].attrib["style"]
            shape = group.find(f"{SVG}defs/{SVG}path")
            assert shape is not None
            marks.add((re.findall("fill: (#......)", style)[0], shape.attrib["d"]))
    assert len(marks) == 25
    assert [t for t in picture.texts if t.startswith("m")] == [f"m{i:02}" for i in range(25)]


def test_without_labels_agreement_is_drawn(tmp_path: Path) -> None:
    """Perfect agreement and nothing removed have a place too; dense accuracy has none."""
    rows = [row("a", s, None, agreement=a) for s, a in ((0.0, 1.0), (0.9, 0.99), (0.99, 0.5))]
    texts = comparison(tmp_path, rows, dense=0.99, title="no labels").texts
    assert {"agreement with the dense network (log scale of errors)", "no labels"} < set(texts)
    assert not any("dense network, 99" in text for text in texts)


def test_a_comparison_without_figures_or_of_several_targets_is_refused(tmp_path: Path) -> None:
    """Nothing is written."""
    path = tmp_path / "plot.svg"
    other = row("a", 0.9, 0.5, target="other")
    with pytest.raises(InputError, match=r"rows: "):
        plot_comparison([*ROWS, other], path)
    with pytest.raises(InputError, match=r"rows: "):
        plot_comparison([], path)
    with pytest.raises(InputError, match=r"rows: "):
        plot_comparison([row("a", 0.9, None)], path)
    assert not path.exists()


def sweep_of(*layers: str, labels: bool = True) -> ThresholdSweep:
    """Return a sweep of five thresholds that zeroes ever more and gets ever worse."""
    points = [
        ThresholdPoint(
            step / 10,
            SparsityReport(tuple(LayerCount(name, 100, 100 - 20 * step) for name in layers)),
            1 - step / 50,
            0.98 - step / 100 if labels else None,
        )
        for step in range(5)
    ]
    return ThresholdSweep(tuple(points), 0.98 if labels else None)


def thresholds(tmp_path: Path, sweep: ThresholdSweep, **how: Any) -> Picture:
    """Draw a sweep and read it back."""
    plot_thresholds(sweep, tmp_path / "plot.svg", **how)
    return Picture(tmp_path / "plot.svg")


def test_a_sweep_is_drawn_by_layer_and_by_quality_over_one_axis(tmp_path: Path) -> None:
    """Zeros above, accuracy and agreement below, and a line where they begin to fall."""
    picture = thresholds(tmp_path, sweep_of("fc1.weight", "fc1.bias"), max_drop=0.02, title="t")
    assert {"zeroed (%)", "held-out inputs (%)", "threshold on |w|", "t"} < set(picture.texts)
    legend = picture.texts[picture.texts.index("fc1.weight") :]
    assert [text for text in legend if not text[0].isdigit()][:3] == [
        "fc1.weight",
        "fc1.bias",
        "all weights",
    ]
    at = picture.texts.index("0.2 costs accuracy on")
    assert picture.texts[at : at + 3] == [
        "0.2 costs accuracy on",
        "at most 2 % of the inputs;",
        "40 % zeroed",
    ]
    drawn = [points for _, points in picture.data(5)]
    assert len(drawn) == 5  # two layers, all weights, agreement, accuracy
    marks = [points for _, points in picture.data(2)]
    assert {x for line in marks for x, _ in line} == {drawn[0][2][0]}  # at the third threshold
    assert len(marks) == 2  # in both plots


def test_without_labels_the_line_stands_where_agreement_falls(tmp_path: Path) -> None:
    """No accuracy is drawn; a drop that is never met says so."""
    sweep = sweep_of("a.weight", labels=False)
    texts = thresholds(tmp_path, sweep, max_drop=0.02).texts
    assert "0.1 costs agreement on" in texts
    assert "accuracy" not in texts
    worse = ThresholdSweep(sweep.points[2:], None)
    assert "no threshold costs agreement on" in thresholds(tmp_path, worse).texts
    assert not any("costs" in text for text in thresholds(tmp_path, sweep, max_drop=None).texts)


def test_of_many_layers_the_first_and_the_last_are_named(tmp_path: Path) -> None:
    """A legend of fifty lines is none."""
    picture = thresholds(tmp_path, sweep_of(*(f"layer{i}" for i in range(50))))
    named = [text for text in picture.texts if "layer" in text]
    assert named == ["layer0", "… 48 layers …", "layer49"]
    assert len(picture.data(5)) == 53


def point(clusters: int, accuracy: float | None, agreement: float | None = 0.9) -> dict[str, Any]:
    """Return a point of the clustering curve."""
    bits = math.log2(clusters) + 0.25
    return {
        "clusters": clusters,
        "accuracy": accuracy,
        "agreement": agreement,
        "bits_per_weight": bits,
        "distinct": 4 * clusters,
    }


def clusters(tmp_path: Path, points: list[dict[str, Any]], **how: Any) -> Picture:
    """Draw a clustering curve and read it back."""
    plot_clusters(points, tmp_path / "plot.svg", **how)
    return Picture(tmp_path / "plot.svg")


def test_clusters_stand_by_powers_of_two_with_bits_and_values(tmp_path: Path) -> None:
    """Equal steps from 2 to 4 to 8 …, whatever order the points come in."""
    points = [point(n, 0.5 + n / 100) for n in (8, 2, 32, 4, 16)]
    picture = clusters(tmp_path, points, dense=0.99, title="codebooks")
    expected = {"32", "5.25 bits", "128 values", "dense network, 99 %", "codebooks", "accuracy"}
    assert expected < set(picture.texts)
    drawn = picture.data(5)
    assert len(drawn) == 2
    for _, line in drawn:
        steps = [right - left for (left, _), (right, _) in pairwise(line)]
        assert steps == pytest.approx([steps[0]] * 4, abs=0.01)
        assert steps[0] > 0
    heights = [y for _, y in drawn[0][1]]
    assert heights == sorted(heights, reverse=True)  # more clusters, higher accuracy


def test_seeds_of_one_number_are_drawn_by_their_median(tmp_path: Path) -> None:
    """The middle one of three stands where it would alone."""
    alone = clusters(tmp_path, [point(2, 0.5), point(4, 0.8)]).data(2)
    three = [point(2, 0.5), *(point(4, accuracy) for accuracy in (0.9, 0.1, 0.8))]
    assert clusters(tmp_path, three).data(2) == alone


def test_points_without_accuracy_show_agreement(tmp_path: Path) -> None:
    """And crowded numbers keep their points but not their labels."""
    texts = clusters(tmp_path, [point(n, None) for n in (2, 30, 32, 1024)]).texts
    assert "agreement with the dense network" in texts
    assert "accuracy" not in texts
    assert ("30" in texts, "32" in texts) == (True, False)


@pytest.mark.parametrize("points", [[], [point(2, None, None)]])
def test_clusters_without_figures_are_refused(tmp_path: Path, points: list[Any]) -> None:
    """No points, or none measured."""
    with pytest.raises(InputError, match=r"points: "):
        plot_clusters(points, tmp_path / "plot.svg")


PLOTS: dict[str, Callable[[Path], None]] = {
    "comparison": lambda path: plot_comparison(ROWS, path, dense=0.99),
    "threshold": lambda path: plot_thresholds(sweep_of("a", "b"), path),
    "clusters": lambda path: plot_clusters([point(2, 0.5), point(4, 0.6)], path),
}


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)
def test_equal_data_are_equal_files_whatever_style_the_user_has(
    tmp_path: Path, plot: Callable[[Path], None]
) -> None:
    """No date, no random names, no settings from outside; and none changed."""
    plot(tmp_path / "one.svg")
    with mpl.rc_context({"font.size": 30.0, "svg.hashsalt": "other", "axes.grid": False}):
        before = dict(mpl.rcParams)
        plot(tmp_path / "two.svg")
        assert dict(mpl.rcParams) == before
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert b"<dc:date>" not in (tmp_path / "one.svg").read_bytes()


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)
def test_the_suffix_says_the_format(tmp_path: Path, plot: Callable[[Path], None]) -> None:
    """PNG or SVG, in any case of letters; any other is refused before anything is drawn."""
    plot(tmp_path / "plot.PNG")
    assert (tmp_path / "plot.PNG").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match=r"path: "):
        plot(tmp_path / "plot.pdf")
    assert [path.name for path in tmp_path.iterdir()] == ["plot.PNG"]


def test_a_sweep_without_points_is_refused(tmp_path: Path) -> None:
    """There is nothing to draw."""
    with pytest.raises(InputError, match="sweep: has no points"):
        plot_thresholds(ThresholdSweep((), None), tmp_path / "plot.svg")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """With what the system says."""
    with pytest.raises(GapruneError, match=r"path: "):
        PLOTS["clusters"](tmp_path / "missing" / "plot.svg")


def test_without_matplotlib_the_message_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is optional."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(GapruneError, match=r"pip install 'gaprune\[compare\]'"):
        PLOTS["clusters"](tmp_path / "plot.svg")
