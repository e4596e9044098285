"""Plots, read back from their SVG files: texts, positions of points, and line styles."""

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

from gaprune.comparison.methods.threshold import ThresholdPoint, ThresholdSweep
from gaprune.comparison.plots.comparison_plot import plot_comparison
from gaprune.comparison.plots.sweep_plots import plot_clusters, plot_thresholds
from gaprune.comparison.rows import MethodRequirements, Row, summarise
from gaprune.errors import GapruneError, InputError
from gaprune.records import LayerCount

SVG = "{http://www.w3.org/2000/svg}"
WEIGHTS = MethodRequirements()
CALIBRATION = MethodRequirements("procedural")
GRADIENTS = MethodRequirements(gradients=True)
TRAINED = MethodRequirements("labelled", labels=True, gradients=True, training=True)
SPARSITIES = (0.9, 0.95, 0.98, 0.99)


class Picture:
    """An SVG file: its texts and its lines."""

    def __init__(self, path: Path) -> None:
        self.root = ET.parse(path).getroot()  # noqa: S314 - written by the test itself
        self.texts = [element.text or "" for element in self.root.iter(f"{SVG}text")]

    def lines(self) -> Iterator[tuple[dict[str, str], list[tuple[float, float]]]]:
        """Yield style and points of every line inside the axes: data and grid."""
        for element in self.root.iter(f"{SVG}path"):
            if "clip-path" in element.attrib:
                style = dict(
                    part.split(": ") for part in element.attrib["style"].rstrip(";").split("; ")
                )
                numbers = [float(n) for n in re.findall(r"-?[\d.]+", element.attrib["d"])]
                yield style, list(zip(numbers[::2], numbers[1::2], strict=True))

    def data(self, count: int) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        """Return the data lines of `count` points; they are wider than the grid."""
        return [
            (style, points)
            for style, points in self.lines()
            if len(points) == count and float(style["stroke-width"]) > 1
        ]


METHODS: dict[str, tuple[MethodRequirements, tuple[float | None, ...]]] = {
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
    Row("lenet", sparsity, method, 0, needs, accuracy, accuracy)
    for method, (needs, accuracies) in METHODS.items()
    for sparsity, accuracy in zip(SPARSITIES, accuracies, strict=True)
]


def comparison(
    tmp_path: Path, rows: list[Row], dense: float | None = 0.9905, title: str = "lenet"
) -> Picture:
    """Draw a comparison and read it back."""
    plot_comparison(summarise(rows), tmp_path / "plot.svg", dense, title)
    return Picture(tmp_path / "plot.svg")


def test_methods_are_grouped_by_requirement_and_ranked(tmp_path: Path) -> None:
    """The best at the highest sparsity comes first; methods without a figure come last."""
    texts = comparison(tmp_path, ROWS).texts
    names = [text for text in texts if text.split(":")[0] in METHODS]
    assert names[:2] == ["lamp", "magnitude"]
    assert names[2:5] == ["evolved", "wanda", "synflow"]
    assert names[5:7] == ["fine-tuned", "slimming"]
    assert names[7].startswith("failed: ")
    assert "lenet" in texts
    assert any("99.05 %" in text for text in texts)


def test_points_agree_with_the_axes(tmp_path: Path) -> None:
    """A line passes through its tick positions; three seeds make a median and an error bar."""
    scores = [(s, 0, s) for s in SPARSITIES] + [(0.98, 1, 0.9), (0.98, 2, 0.99)]
    rows = [Row("lenet", s, "a", seed, WEIGHTS, accuracy) for s, seed, accuracy in scores]
    picture = comparison(tmp_path, rows)
    ticks = [e for e in picture.root.iter(f"{SVG}text") if (e.text or "").endswith(" %")]
    across = [float(e.attrib["x"]) for e in ticks[:4]]
    upward = {e.text: float(e.attrib["y"]) for e in ticks[4:]}
    ((_, points),) = picture.data(4)
    left = points[0][0] - across[0]  # a label begins left of its tick
    assert [x - left for x, _ in points] == pytest.approx(across, abs=0.01)
    rise = upward["90 %"] - points[0][1]  # a label is below its tick
    heights = [upward[f"{100 * s:g} %"] - rise for s in SPARSITIES]
    assert [y for _, y in points] == pytest.approx(heights, abs=0.01)
    bars = [p for style, p in picture.lines() if len(p) == 2 and p[0][0] == points[2][0]]
    assert sorted(y for _, y in bars[-1]) == pytest.approx(
        [upward["99 %"] - rise, upward["90 %"] - rise], abs=0.01
    )


def test_every_method_is_at_the_sparsity_that_it_reached(tmp_path: Path) -> None:
    """No point is moved sideways; the caption has the version and the seeds."""
    removed = {"a": SPARSITIES, "b": SPARSITIES, "c": (0.9, 0.95, 0.97, 0.98)}
    rows = [
        Row("lenet", s, method, 0, WEIGHTS, 0.9, actual=actual)
        for method, reached in removed.items()
        for s, actual in zip(SPARSITIES, reached, strict=True)
    ]
    plot_comparison(summarise(rows), tmp_path / "plot.svg", None, "lenet", "seeds 0, 1")
    picture = Picture(tmp_path / "plot.svg")
    a, b, c = ([x for x, _ in points] for _, points in picture.data(4))
    assert a == b
    assert c[:2] == a[:2]
    assert c[3] == pytest.approx(a[2])
    assert "seeds 0, 1" in picture.texts


def test_line_styles_show_requirements(tmp_path: Path) -> None:
    """Evolved masks are bold and black; no two methods share colour and dashes."""
    styles = [style for style, _ in comparison(tmp_path, ROWS).data(4)]
    bold = [style for style in styles if float(style["stroke-width"]) > 2]
    assert [style["stroke"] for style in bold] == ["#000000"]
    dashes = [style.get("stroke-dasharray") for style in styles if style not in bold]
    assert [dashes.count(kind) for kind in dict.fromkeys(dashes)] == [2, 2, 1]
    assert len({(style["stroke"], style.get("stroke-dasharray")) for style in styles}) == 6


def test_without_labels_agreement_is_drawn(tmp_path: Path) -> None:
    """Perfect agreement and sparsity 0 have finite positions."""
    scores = ((0.0, 1.0), (0.9, 0.99), (0.99, 0.5))
    rows = [Row("lenet", s, "a", 0, WEIGHTS, None, agreement) for s, agreement in scores]
    texts = comparison(tmp_path, rows, None, "no labels").texts
    assert "no labels" in texts
    assert any(text.startswith("agreement") for text in texts)
    assert not any("dense network," in text for text in texts)


@pytest.mark.parametrize("rows", [[], [Row("lenet", 0.9, "a", 0, WEIGHTS)]])
def test_rows_without_figures_are_refused(tmp_path: Path, rows: list[Row]) -> None:
    """No file is written."""
    with pytest.raises(InputError, match=r"rows: "):
        comparison(tmp_path, rows)
    assert list(tmp_path.iterdir()) == []


def sweep_of(*layers: str, labels: bool = True) -> ThresholdSweep:
    """Return a sweep of five thresholds with falling accuracy."""
    points = [
        ThresholdPoint(
            step / 10,
            tuple(LayerCount(name, 100, 100 - 20 * step) for name in layers),
            1 - step / 50,
            0.98 - step / 100 if labels else None,
        )
        for step in range(5)
    ]
    return ThresholdSweep(tuple(points), 0.98 if labels else None)


def thresholds(tmp_path: Path, sweep: ThresholdSweep) -> Picture:
    """Draw a sweep and read it back."""
    plot_thresholds(sweep, tmp_path / "plot.svg", max_drop=0.02, title="t")
    return Picture(tmp_path / "plot.svg")


def test_a_sweep_marks_the_largest_threshold_within_the_drop(tmp_path: Path) -> None:
    """Sparsity per layer above, accuracy and agreement below, on one axis of thresholds."""
    sweep = sweep_of("fc1.weight", "fc1.bias")
    picture = thresholds(tmp_path, sweep)
    assert {"fc1.weight", "fc1.bias", "t", "40 % zeroed"} < set(picture.texts)
    assert any(text.startswith("0.2 ") for text in picture.texts)
    drawn = [points for _, points in picture.data(5)]
    assert len(drawn) == 5  # two layers, all weights, agreement, accuracy
    marks = [points for _, points in picture.data(2)]
    assert {x for line in marks for x, _ in line} == {drawn[0][2][0]}  # at the third threshold
    assert len(marks) == 2  # in both plots


def test_without_labels_the_mark_is_where_agreement_falls(tmp_path: Path) -> None:
    """Accuracy is left out."""
    texts = thresholds(tmp_path, sweep_of("a.weight", labels=False)).texts
    assert any(text.startswith("0.1 ") for text in texts)
    assert "accuracy" not in texts


def point(clusters: int, accuracy: float) -> dict[str, Any]:
    """Return a point of the clustering curve."""
    measured = {"accuracy": accuracy, "agreement": 0.9}
    bits = math.log2(clusters) + 0.25
    return {"clusters": clusters, **measured, "bits_per_weight": bits, "distinct": 4 * clusters}


def test_cluster_counts_are_on_a_log_axis(tmp_path: Path) -> None:
    """Equal steps from 2 to 4 to 8, in any order of points; labels give bits and values."""
    points = [point(n, 0.5 + n / 100) for n in (8, 2, 32, 4, 16)]
    plot_clusters(points, tmp_path / "plot.svg", dense=0.99, title="codebooks")
    picture = Picture(tmp_path / "plot.svg")
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


PLOTS: dict[str, Callable[[Path], None]] = {
    "comparison": lambda path: plot_comparison(summarise(ROWS), path, 0.99, "lenet"),
    "threshold": lambda path: plot_thresholds(sweep_of("a"), path, max_drop=0.01, title="t"),
    "clusters": lambda path: plot_clusters([point(2, 0.5), point(4, 1)], path, dense=1, title="t"),
}


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)
def test_equal_data_give_equal_files(tmp_path: Path, plot: Callable[[Path], None]) -> None:
    """No date, no random ids, no influence of the user's rcParams, which stay unchanged."""
    plot(tmp_path / "first.svg")
    with mpl.rc_context({"font.size": 30.0, "svg.hashsalt": "other", "axes.grid": False}):
        before = dict(mpl.rcParams)
        plot(tmp_path / "second.svg")
        assert dict(mpl.rcParams) == before
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()
    assert b"<dc:date>" not in (tmp_path / "first.svg").read_bytes()


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)
def test_the_suffix_gives_the_format(tmp_path: Path, plot: Callable[[Path], None]) -> None:
    """PNG or SVG in either case; another suffix or a missing folder is refused."""
    plot(tmp_path / "plot.PNG")
    assert (tmp_path / "plot.PNG").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match=r"path: "):
        plot(tmp_path / "plot.pdf")
    with pytest.raises(GapruneError, match=r"path: "):
        plot(tmp_path / "missing" / "plot.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["plot.PNG"]


def test_without_matplotlib_the_message_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is raised before anything is drawn."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(GapruneError, match=r"gaprune\[compare\]"):
        PLOTS["clusters"](tmp_path / "plot.svg")
