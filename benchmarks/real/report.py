"""Tables of the benchmark on real networks: one per network, with notes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.real.rows import Row
from gaprune.cli.console import add_row, table
from gaprune.formatting import MISSING, duration, percent

COLUMNS = ("method", "sparsity", "score", "of dense", "agreement", "needs", "time", "MB")
FULL_WIDTH = 200  # columns of a table written to a file or a pipe
CACHED = "*"


def show(rows: Sequence[Row], console: Console) -> None:
    """Print a table for each network and the reasons for missing scores."""
    for network, group in groupby(rows, key=lambda row: row.network):
        network_rows = list(group)
        console.print(_table(network, network_rows))
        for text in _notes(network_rows):
            console.print(Text(text))
        console.print()


def line(row: Row) -> str:
    """Return a row as a line of progress."""
    name = f"{row.network} {row.sparsity:g} {row.method}, seed {row.seed}"
    if row.score is None:
        return f"{name}: {row.note}"
    scores = f"{percent(row.score)} (dense {percent(row.dense)})"
    return f"{name}: {scores} in {row.seconds or 0:.0f} s, {row.peak_mb or 0:,.0f} MB"


def _table(network: str, rows: Sequence[Row]) -> Table:
    scored = next((row for row in rows if row.score is not None), rows[0])
    title = network
    if scored.test_count:
        measure = f"{scored.measure}, {scored.test_count:,} test items"
        title = f"{network}: {measure}; dense {percent(scored.dense)}"
    several = len({row.seed for row in rows}) > 1
    columns = table(*COLUMNS, *(["seed"] if several else []), title=title)
    for row in rows:
        seed = [str(row.seed)] if several else []
        add_row(columns, [*_cells(row), *seed], strong=row.method in ("strict", "repair"))
    return columns


def _cells(row: Row) -> list[str]:
    retained = row.score / row.dense if row.score is not None and row.dense else None
    return [
        row.method,
        f"{row.sparsity:g}",
        percent(row.score),
        percent(retained),
        percent(row.agreement),
        row.needs or MISSING,
        MISSING if row.seconds is None else duration(row.seconds) + CACHED * row.cached,
        MISSING if row.peak_mb is None else f"{row.peak_mb:,.0f}",
    ]


def _notes(rows: Iterable[Row]) -> list[str]:
    """Return each reason for missing scores once, with its rows."""
    reasons: dict[str, list[Row]] = {}
    cached = False
    for row in rows:
        cached = cached or row.cached
        if row.score is None:
            reasons.setdefault(row.note, []).append(row)
    texts = []
    for reason, missing in reasons.items():
        named = ", ".join(dict.fromkeys(f"{row.method} at {row.sparsity:g}" for row in missing))
        texts.append(f"no score ({named}): {reason}")
    if cached:
        texts.append(
            f"{CACHED} excludes the inversion of calibration inputs, which were cached on disk"
        )
    return texts
