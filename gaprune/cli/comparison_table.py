"""The table of a comparison, as wide as the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from gaprune.cli.console import WIDEST, add_row, stdout, table
from gaprune.comparison import Comparison
from gaprune.comparison.rows import notes, table_cells, table_header
from gaprune.comparison.store import CSV, LIST, PLOTS, REPORT, TABLE
from gaprune.config import EVOLVED

DISPENSABLE = ("needs", "effort", "seconds")  # columns that are dropped, in this order
TEXT_COLUMN = "needs"  # its cells are words and may wrap
SHORT = 24  # names of methods up to this length are not wrapped; paths of users' own are longer


def show_comparison(comparison: Comparison, folder: Path) -> None:
    """Print the table, its notes, and where everything is saved."""
    console = stdout(wide=True)
    dropped = print_table(console, comparison)
    if dropped:
        console.print(f"columns left out: {', '.join(dropped)}; {folder / TABLE} has all of them")
    for note in notes(comparison.summaries):
        console.print(note, markup=False)
    seeds = len({row.seed for row in comparison.rows})
    spread = f"; median ± half the range of {seeds} seeds" if seeds > 1 else ""
    console.print(f"measured on {comparison.measured_on}{spread}", markup=False)
    files = [name for name in (REPORT, CSV, LIST, TABLE, *PLOTS) if (folder / name).exists()]
    console.print(f"saved in {folder}: {', '.join(files)}", markup=False)


def print_table(console: Console, comparison: Comparison) -> list[str]:
    """Print one line per method, one column per sparsity; return the columns dropped."""
    dropped: list[str] = []
    # sparsities and methods always stay: they are what the table is for
    rows = _table(comparison, dropped)
    for column in DISPENSABLE:
        widest = console.options.update(max_width=WIDEST)
        if Measurement.get(console, widest, rows).minimum <= console.width:  # no word is broken
            break
        dropped.append(column)
        rows = _table(comparison, dropped)
    console.print(rows)
    return dropped


def _table(comparison: Comparison, dropped: list[str]) -> Table:
    sparsities = sorted({row.sparsity for row in comparison.rows})
    head = table_header(sparsities)
    present = [index for index, column in enumerate(head) if column not in dropped]
    labelled = comparison.dense_accuracy is not None
    measure = "accuracy" if labelled else "agreement with the dense network"
    title = f"{comparison.target}: {measure} in %, by fraction of {comparison.removed} removed"
    rows = table(*(head[index] for index in present), title=title, left=[TEXT_COLUMN])
    rows.padding = (0, 1, 0, 0)  # six sparsities fit in 120 columns
    for column in rows.columns:
        column.no_wrap = column.header in {"effort", "seconds"}
    rows.columns[0].no_wrap = all(len(line.method) <= SHORT for line in comparison.summaries)
    if comparison.dense_accuracy is not None:
        cells = [f"{100 * comparison.dense_accuracy:.2f}"] * len(sparsities)
        full = ["dense network", "", *cells, "", ""]  # it needs nothing and took no time
        add_row(rows, [full[index] for index in present])
    for line in comparison.summaries:
        full = table_cells(line, sparsities)
        add_row(rows, [full[index] for index in present], strong=line.method == EVOLVED)
    return rows
