"""What a comparison prints: a line per row, and a table as wide as the terminal."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from gaprune.cli.console import WIDEST, Monitor, add_row, stdout, table
from gaprune.cli.stop_signals import SignalHandler
from gaprune.comparison import Comparison, Row, added_methods, known_methods
from gaprune.comparison.context import ComparisonObserver, part_name
from gaprune.comparison.rows import needs_text, notes, table_cells, table_header
from gaprune.comparison.store import CSV, LIST, PLOTS, REPORT, TABLE
from gaprune.config import EVOLVED
from gaprune.formatting import duration, percent
from gaprune.io.serialization import to_json

WIDE = 120  # terminal columns from which the sources of methods are listed

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


class RowMonitor(Monitor, ComparisonObserver):
    """A monitor that prints a line for every row; of rows with the same error, for the first."""

    def __init__(self, *, quiet: bool, signals: SignalHandler) -> None:
        super().__init__(quiet=quiet, signals=signals)
        self._failed: set[tuple[str, str]] = set()

    def progress(self, what: str, done: float, total: float | None) -> None:
        """Show it, unless a signal was lost while a method trained or searched."""
        self._signals.check()
        super().progress(what, done, total)

    def row(self, row: Row, done: int, total: int) -> None:
        """Print the outcome of a row."""
        self.stop_bar()
        if row.error is not None:
            # a method fails alike for every seed and sparsity: one line is enough
            if (row.method, row.error) in self._failed:
                return
            self._failed.add((row.method, row.error))
        outcome = row.error or row.note or f"{percent(row.score)} in {duration(row.seconds)}"
        self.say(f"{done}/{total} {part_name(row.method, row.seed, row.sparsity)}: {outcome}")


def list_all_methods(*, as_json: bool) -> None:
    """Print every method and what it needs."""
    known = [*known_methods().values(), *added_methods().values()]
    if as_json:
        keys = ("name", "description", "source", "needs", "seeded", "path")
        rows = [{key: asdict(method)[key] for key in keys} for method in known]
        typer.echo(to_json(rows, indent=2))
        return
    console = stdout(wide=True)
    head = ("method", "needs", "what it does", "source")[: None if console.width >= WIDE else -1]
    listing = table(*head, title="Methods of gaprune compare", left=head)
    for method in known:
        cells = [method.name, needs_text(method.needs), method.description, method.source]
        add_row(listing, cells[: len(head)])
    console.print(listing)
