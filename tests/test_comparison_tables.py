"""Many rows as one table: medians, spread, notes; CSV and Markdown."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from gaprune.cli.comparison_table import print_table
from gaprune.comparison import Comparison, MethodRequirements, Row, known_methods
from gaprune.comparison.rows import markdown, needs_text, notes
from gaprune.comparison.store import as_csv

BASE = Row("net", 0.5, "a", 0, MethodRequirements(), 0.5, 0.6, actual=0.5, dense_accuracy=0.9)
TRAINED = MethodRequirements("labelled", labels=True, gradients=True, training=True)


def row(method: str, sparsity: float, score: float | None, seed: int = 0, **more: Any) -> Row:
    """Return a row with an accuracy, or with an error."""
    error = None if score is not None else f"{method} cannot"
    known = {"accuracy": score, "agreement": score, "actual": sparsity, "error": error, **more}
    return replace(BASE, method=method, sparsity=sparsity, seed=seed, **known)


def compared(*rows: Row) -> Comparison:
    """Return them as a comparison."""
    return Comparison("net", rows, 0.9, "the test set")


def test_lines_have_the_median_and_the_ends_over_seeds() -> None:
    """Of those that have a figure."""
    seeds = {0: 0.2, 1: 0.9, 2: 0.6, 3: None}
    (line,) = compared(*(row("a", 0.5, score, seed) for seed, score in seeds.items())).summaries
    cell = line.cells[0.5]
    assert (cell.score, cell.low, cell.high, cell.seeds) == (0.6, 0.2, 0.9, 3)
    assert line.error == "a cannot"


def test_what_trains_comes_last_and_the_furthest_first() -> None:
    """Then the best at the highest sparsity; what failed is at the end of its part."""
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


def test_effort_is_that_of_the_highest_sparsity() -> None:
    """The median over its seeds."""
    rows = [row("a", 0.9, 0.5, seed, epochs=seed, seconds=10.0 * seed) for seed in (1, 2, 6)]
    (line,) = compared(row("a", 0.5, 0.5, epochs=99, seconds=99), *rows).summaries
    assert (line.epochs, line.seconds) == (2, 20)


def test_notes_name_other_budgets_and_join_equal_reasons() -> None:
    """A budget that is met goes without saying."""
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


def test_needs_are_named_in_a_few_words() -> None:
    """From the weights alone to labels and training."""
    assert needs_text(MethodRequirements()) == "weights only"
    assert needs_text(MethodRequirements(gradients=True)) == "weights, gradients"
    assert needs_text(MethodRequirements("procedural")) == "calibration"
    assert needs_text(MethodRequirements("unlabelled", gradients=True)) == "unlabelled, gradients"
    assert (
        needs_text(MethodRequirements("procedural", gradients=True, training=True))
        == "calibration, training"
    )
    assert needs_text(TRAINED) == "labels, training"


def test_markdown_has_a_line_for_each_method_and_the_dense_network() -> None:
    """Spread where there are seeds, dashes where there is no figure, notes below."""
    found = compared(
        row("a", 0.5, 0.5), row("b", 0.5, 0.2, 0), row("b", 0.5, 0.3, 1), row("c", 0.5, None)
    )
    assert found.caption == (
        "net: Accuracy in % on the test set, median ± half the range of 2 seeds, by the fraction "
        "of prunable weights removed."
    )
    assert markdown(found.summaries, found.dense_accuracy, found.caption).splitlines() == [
        found.caption,
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


def everything(sparsities: tuple[float, ...], seeds: int) -> Comparison:
    """Return a comparison of all methods whose figures take as much room as figures can."""
    return compared(
        *(
            row(name, sparsity, 0.25 + 0.6 * seed / seeds, seed, needs=method.needs, epochs=13)
            for name, method in known_methods().items()
            for sparsity in sparsities
            for seed in range(seeds)
        )
    )


@pytest.mark.parametrize(
    ("width", "sparsities", "seeds", "missing"),
    [
        (80, (0.9, 0.98), 1, []),
        (80, (0.9, 0.98), 3, []),
        (120, (0.5, 0.7, 0.9, 0.95, 0.98, 0.99), 1, []),
        (120, (0.5, 0.7, 0.9, 0.95, 0.98, 0.99), 3, []),
        (80, (0.5, 0.7, 0.9, 0.95, 0.98, 0.99), 3, ["needs", "effort", "seconds"]),
    ],
)
def test_no_word_of_the_table_is_broken_on_the_screen(
    width: int, sparsities: tuple[float, ...], seeds: int, missing: list[str]
) -> None:
    """Where there is no room, columns of words are left out, never half a number."""
    screen = Console(file=io.StringIO(), width=width)
    assert print_table(screen, everything(sparsities, seeds)) == missing
    assert isinstance(screen.file, io.StringIO)
    shown = screen.file.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    words = shown.split()
    for name in known_methods():
        assert name in words
    figure = "25.00" if seeds == 1 else "45.00"
    assert words.count(figure) == len(known_methods()) * len(sparsities)
    assert words.count("±20.00") == (len(known_methods()) * len(sparsities) if seeds > 1 else 0)
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
def test_csv_has_one_line_a_row_that_any_reader_splits(rows: list[Row]) -> None:
    """Numbers come back as they were; needs have columns of their own."""
    text = as_csv(rows)
    assert text.count("\n") == len(rows) + 1
    read = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(read) == len(rows)
    for record, one in zip(read, rows, strict=True):
        assert (record["method"], int(record["seed"])) == (one.method, one.seed)
        assert float(record["sparsity"]) == one.sparsity
        assert tuple(map(float, record["path"].split())) == one.path
        assert record["needs_data"] == one.needs.data
        assert record["accuracy"] == ("" if one.accuracy is None else repr(one.accuracy))


@given(ROWS)
def test_a_row_is_read_as_it_was_written(one: Row) -> None:
    """Whatever its text and numbers."""
    assert Row.of(one.record()) == one
