"""Summaries of rows: medians, ranges and notes, as a table, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from rich.console import Console

from gaprune.cli.comparison_table import print_table
from gaprune.comparison import Comparison, MethodRequirements, Row, known_methods
from gaprune.comparison.rows import markdown, needs_text, notes
from gaprune.comparison.store import as_csv
from gaprune.io.bounded_reading import parse_as

BASE = Row("net", 0.5, "a", 0, MethodRequirements(), 0.5, 0.6, actual=0.5, dense_accuracy=0.9)
TRAINED = MethodRequirements("labelled", labels=True, gradients=True, training=True)


def row(method: str, sparsity: float, score: float | None, seed: int = 0, **more: Any) -> Row:
    """Return a row with an accuracy, or with an error."""
    error = None if score is not None else f"{method} cannot"
    known = {"accuracy": score, "agreement": score, "actual": sparsity, "error": error, **more}
    return replace(BASE, method=method, sparsity=sparsity, seed=seed, **known)


def compared(*rows: Row) -> Comparison:
    """Return rows as a comparison."""
    return Comparison("net", rows, 0.9, "the test set")


def test_summaries_have_median_and_range() -> None:
    """Over the seeds with a figure."""
    seeds = {0: 0.2, 1: 0.9, 2: 0.6, 3: None}
    (line,) = compared(*(row("a", 0.5, score, seed) for seed, score in seeds.items())).summaries
    cell = line.cells[0.5]
    assert (cell.score, cell.low, cell.high, cell.seeds) == (0.6, 0.2, 0.9, 3)
    assert line.error == "a cannot"


def test_summaries_are_ranked() -> None:
    """Methods that train come last; then by highest sparsity and score; failures end a group."""
    lines = compared(
        row("trained", 0.9, 1.0, needs=TRAINED),
        row("failed", 0.5, None),
        row("dense-only", 0.5, 0.99),
        row("dense-only", 0.9, None),
        row("worse", 0.9, 0.3),
        row("better", 0.9, 0.4),
        row("untrained", 0.5, None, needs=TRAINED),
    ).summaries
    names = ["better", "worse", "dense-only", "failed", "trained", "untrained"]
    assert [line.method for line in lines] == names


def test_notes_state_other_budgets_and_errors() -> None:
    """Methods with the same error share a note."""
    lines = compared(
        row("channels", 0.5, 0.5, actual=0.5312),
        row("exact", 0.5, 0.5),
        row("one", 0.5, None, error="train: none"),
        row("two", 0.5, None, error="train: none"),
        row("three", 0.5, None, error="other"),
    ).summaries
    assert notes(lines) == [
        "channels: removed 53.1 % at 0.5",
        "one, two: train: none",
        "three: other",
    ]


@pytest.mark.parametrize(
    ("needs", "text"),
    [
        (MethodRequirements(), "weights only"),
        (MethodRequirements(gradients=True), "weights, gradients"),
        (MethodRequirements("procedural"), "calibration"),
        (MethodRequirements("procedural", gradients=True, training=True), "calibration, training"),
        (TRAINED, "labels, training"),
        (MethodRequirements(changes="weights"), "weights only; changes weights"),
    ],
)
def test_requirements_as_text(needs: MethodRequirements, text: str) -> None:
    """From the weights alone to labels and training."""
    assert needs_text(needs) == text


def test_markdown_has_a_line_per_method() -> None:
    """The range over seeds, dashes where there is no figure, and notes below."""
    comparison = compared(
        row("a", 0.5, 0.5), row("b", 0.5, 0.2, 0), row("b", 0.5, 0.3, 1), row("c", 0.5, None)
    )
    text = markdown(comparison.summaries, comparison.dense_accuracy, comparison.caption)
    assert text.splitlines() == [
        comparison.caption,
        "",
        "| method | needs | 0.5 | effort | seconds |",
        "| --- | --- | --- | --- | --- |",
        "| *dense network* |  | 90.00 |  |  |",
        "| a | weights only | 50.00 | one shot | 0.0 |",
        "| b | weights only | 25.00 ±5.00 | one shot | 0.0 |",
        "| c | weights only | – | – | – |",
        "",
        "c: c cannot",
    ]


@pytest.mark.parametrize(
    ("width", "sparsities", "missing"),
    [
        (80, (0.9, 0.98), []),
        (120, (0.5, 0.7, 0.9, 0.95, 0.98, 0.99), []),
        (80, (0.5, 0.7, 0.9, 0.95, 0.98, 0.99), ["needs", "effort", "seconds"]),
    ],
)
def test_the_table_breaks_no_word(
    width: int, sparsities: tuple[float, ...], missing: list[str]
) -> None:
    """On a narrow terminal columns of text are left out, and figures stay complete."""
    rows = (
        row(name, sparsity, 0.25 + 0.2 * seed, seed, needs=method.needs, epochs=13)
        for name, method in known_methods().items()
        for sparsity in sparsities
        for seed in range(3)
    )
    screen = Console(file=io.StringIO(), width=width)
    assert print_table(screen, compared(*rows)) == missing
    assert isinstance(screen.file, io.StringIO)
    text = screen.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    words = text.split()
    for name in known_methods():
        assert name in words
    for figure in ("45.00", "±20.00"):
        assert words.count(figure) == len(known_methods()) * len(sparsities)
    assert words.count("90.00") == len(sparsities)  # of the dense network


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=8)
ROWS = st.builds(
    Row,
    target=TEXT,
    sparsity=st.floats(0.01, 0.99),
    method=TEXT,
    seed=st.integers(0, 2**32 - 1),
    needs=st.builds(MethodRequirements, data=TEXT, labels=st.booleans()),
    accuracy=st.none() | st.floats(0, 1),
    path=st.lists(st.floats(0.01, 0.99), max_size=3).map(tuple),
    error=st.none() | TEXT,
)


@given(st.lists(ROWS, min_size=1, max_size=4))
def test_csv_round_trip(rows: list[Row]) -> None:
    """Numbers survive; requirements have columns."""
    text = as_csv(rows)
    assert text.count("\n") == len(rows) + 1
    read = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(read) == len(rows)
    for record, expected in zip(read, rows, strict=True):
        assert (record["method"], int(record["seed"])) == (expected.method, expected.seed)
        assert float(record["sparsity"]) == expected.sparsity
        assert tuple(map(float, record["path"].split())) == expected.path
        assert record["needs_data"] == expected.needs.data
        assert record["accuracy"] == ("" if expected.accuracy is None else repr(expected.accuracy))


@given(ROWS)
def test_record_round_trip(expected: Row) -> None:
    """A row equals itself after it was written as JSON and read with its types."""
    assert parse_as(TypeAdapter(Row), json.dumps(expected.record())) == expected
