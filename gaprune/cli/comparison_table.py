"""The table of a comparison on the screen, as wide as there is room."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from gaprune.cli.console import add_row, stdout, table
from gaprune.comparison import Comparison
from gaprune.comparison.store import CSV, LIST, PLOTS, REPORT, TABLE
from gaprune.comparison.tables import columns, line_cells, notes
from gaprune.config import EVOLVED

WIDEST = 1000  # of what is written to a file or a pipe
DISPENSABLE = ("needs", "effort", "seconds")  # columns that go first where there is no room
WRAPPED = "needs"  # the column of words
SHORT = 24  # the longest method that is never broken; those of the user's own are paths


def show_comparison(found: Comparison, place: Path) -> None:
    """Print the table, what must be known about it, and where everything is."""
    console = stdout()
    if not console.is_terminal:
        console.width = WIDEST
    missing = print_table(console, found)
    if missing:
        console.print(f"no room for {', '.join(missing)}: {place / TABLE} has all columns")
    for note in notes(found.lines):
        console.print(note, markup=False)
    seeds = len({row.seed for row in found.rows})
    spread = f"; median ± half the range of {seeds} seeds" if seeds > 1 else ""
    console.print(f"measured on {found.measured_on}{spread}", markup=False)
    made = [name for name in (REPORT, CSV, LIST, TABLE, *PLOTS) if (place / name).exists()]
    console.print(f"saved in {place}: {', '.join(made)}", markup=False)


def print_table(console: Console, found: Comparison) -> list[str]:
    """Print one line a method, one column a sparsity; return the columns that found no room."""
    missing: list[str] = []
    shown = _table(found, missing)
    for column in DISPENSABLE:
        if _least_width(console, shown) <= console.width:
            break
        missing.append(column)
        shown = _table(found, missing)
    console.print(shown)
    return missing


def _table(found: Comparison, missing: list[str]) -> Table:
    sparsities = sorted({row.sparsity for row in found.rows})
    head = columns(sparsities)
    there = [index for index, column in enumerate(head) if column not in missing]
    labelled = found.dense_accuracy is not None
    measure = "accuracy" if labelled else "agreement with the dense network"
    heading = f"{found.target}: {measure} in %, by the part of the {found.removed} that is removed"
    shown = table(*(head[index] for index in there), title=heading)
    shown.padding = (0, 1, 0, 0)  # six sparsities have room in 120 columns
    for column in shown.columns:
        if column.header == WRAPPED:
            column.justify = "left"
        column.no_wrap = column.header in {"effort", "seconds"}
    shown.columns[0].no_wrap = all(len(line.method) <= SHORT for line in found.lines)
    lines = [(line_cells(line, sparsities), line.method == EVOLVED) for line in found.lines]
    if found.dense_accuracy is not None:
        full = [f"{100 * found.dense_accuracy:.2f}"] * len(sparsities)
        lines.insert(0, (["dense network", "", *full, "", ""], False))
    for cells, strong in lines:
        add_row(shown, [cells[index] for index in there], strong=strong)
    return shown


def _least_width(console: Console, shown: Table) -> int:
    """Return the width at which no word is broken."""
    return Measurement.get(console, console.options.update(max_width=WIDEST), shown).minimum
