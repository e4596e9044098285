"""A result as people read it: a few lines, and the same with the search curve in notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from gaprune.formatting import duration, number, percent, points, removed_weights
from gaprune.report.charts import Chart
from gaprune.report.curves import search_charts
from gaprune.report.headline import network_name, network_scores, weight_counts
from gaprune.report.reading import RunFiles

MAX_WARNINGS, LONGEST = 3, 100  # warnings in a text, and characters of each


class LayerTable(list[dict[str, Any]]):
    """One record per layer, printed as a table; `pandas.DataFrame` takes it too."""

    def __repr__(self) -> str:
        header = ["layer", "shape", "weights", "kept", "density"]
        cells = [
            [
                row["layer"],
                "×".join(map(str, row["shape"])),
                number(row["weights"]),
                number(row["kept"]),
                percent(row["density"]),
            ]
            for row in self
        ]
        widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
        lines = [header, *cells]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if index < 2 else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )


def result_lines(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the main figures of a result, the content of `result.json`, each with its name."""
    total, keep_count = weight_counts(record)
    agreement, accuracy = network_scores(record)
    lines = [("network", f"{record['target']}, {network_name(record)}")]
    lines.append(("sparsity", removed_weights(total - keep_count, total)))
    if accuracy is not None:
        dense = record["accuracy"]["dense"]
        lines.append(("accuracy", f"{percent(accuracy)} on the test data (dense {percent(dense)})"))
    if perplexity := record.get("perplexity"):
        dense, pruned = (f"{perplexity[name]:.4g}" for name in ("dense", "pruned"))
        lines.append(("perplexity", f"{pruned} on the test text (dense {dense})"))
    lines.append(("agreement", f"{percent(agreement)} with the dense network, validation inputs"))
    best = record["best_baseline"]
    if best is not None:
        of_best = percent(record["baselines"][best]["agreement"])
        lines.append(("best one-shot", f"{best}, {of_best} agreement"))
        lines.append(("gain", f"{points(record['gain'])} over it"))
    cost = f"{duration(record['seconds'])}, {number(record['evaluations'])} evaluations"
    lines.append(("time", f"{cost}; ended by {record['stopped']}"))
    warnings = record["warnings"]
    lines.append(("warnings", str(len(warnings)) if warnings else "none"))
    shortened = (text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…" for text in warnings)
    return lines + [("", text) for _, text in zip(range(MAX_WARNINGS), shortened, strict=False)]


def result_text(record: Mapping[str, Any]) -> str:
    """Return the figures of a result as at most 12 lines."""
    return "\n".join(f"{name:<15}{text}" for name, text in result_lines(record))


def result_html(record: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> str:
    """Return the figures of a result, and the curve of its search, for a notebook."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th>"
        f"<td style='text-align:left'>{escape(text)}</td></tr>"
        for name, text in result_lines(record)
    )
    charts = search_charts(RunFiles(Path(), record, tuple(history), "", {}))
    curve = _curve(charts[0][1][0]) if charts else ""
    return f"<table>{rows}</table>{curve}"


def _curve(chart: Chart, width: int = 480, height: int = 160) -> str:
    """Return a chart as SVG of a fixed size, in the colours of the page around it."""
    left, bottom = 64, 24
    wide, high = width - left - 12, height - bottom - 12

    def x(at: float) -> float:
        return round(left + wide * at / 100, 1)

    def y(from_top: float) -> float:
        return round(12 + high * from_top / 100, 1)

    parts = [
        f"<line x1='{left}' x2='{x(100)}' y1='{y(100 - at)}' y2='{y(100 - at)}' opacity='0.2'/>"
        f"<text x='{left - 6}' y='{y(100 - at) + 4}' text-anchor='end'>{escape(text)}</text>"
        for at, text in chart.y.labels
    ]
    parts += [
        f"<text x='{x(at)}' y='{height - 6}' text-anchor='middle'>{escape(text)}</text>"
        for at, text in chart.x.labels
    ]
    for from_top, text in chart.reference_lines:
        parts.append(
            f"<line x1='{left}' x2='{x(100)}' y1='{y(from_top)}' y2='{y(from_top)}' "
            f"stroke-dasharray='4 3'><title>{escape(text)}</title></line>"
        )
    for line in chart.lines:
        path = " ".join(f"{x(point.x)},{y(point.y)}" for point in line.points)
        parts.append(f"<polyline points='{path}' fill='none' stroke='#0b6e5d' stroke-width='2'/>")
    title = f"{chart.title}, against {chart.x.title}; dashed: the best one-shot mask"
    return (
        f"<div>{escape(title)}</div><svg width='{width}' height='{height}' role='img' "
        f"aria-label='{escape(chart.summary, quote=True)}' stroke='currentColor' "
        "style='font:11px sans-serif'><g>"
        + "".join(parts).replace("<text ", "<text stroke='none' fill='currentColor' ")
        + "</g></svg>"
    )
