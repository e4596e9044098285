"""`gaprune compare`: every method on one table, and what the missing data costs."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from gaprune.cli import common_options as common
from gaprune.cli.comparison_table import show_comparison
from gaprune.cli.console import Monitor, add_row, stdout, table
from gaprune.cli.options import with_options
from gaprune.cli.prune_command import RUNS, slug
from gaprune.cli.stop_signals import SignalHandler
from gaprune.comparison import ComparisonData, Row, added_methods, compare_target, known_methods
from gaprune.comparison.comparison_request import COMPARISON_KEYS, make_request
from gaprune.comparison.context import ComparisonObserver, part_name
from gaprune.comparison.rows import needs_text
from gaprune.comparison.spec import UNUSED
from gaprune.formatting import duration, percent
from gaprune.io.serialization import to_json, to_toml

WIDE = 120  # terminal columns from which the sources of methods are listed
HEAD = "# gaprune compare --config THIS_FILE repeats this; relative paths are kept.\n"


@with_options(keys=COMPARISON_KEYS, leave_out=UNUSED)
def compare_command(  # noqa: PLR0913 # options, each by its own name
    *,
    list_methods: Annotated[
        bool, common.switch("--list-methods", "list the methods and exit", None)
    ] = False,
    out: Annotated[
        str | None,
        common.value(
            "folder for the rows (default: runs/compare-TARGET); rows there are reused", "DIR"
        ),
    ] = None,
    overwrite: Annotated[bool, common.switch("--overwrite", "delete earlier rows")] = False,
    config: Annotated[Path | None, common.CONFIG] = None,
    trust_code: Annotated[bool, common.TRUST_CODE] = False,
    as_json: Annotated[bool, common.ROWS] = False,
    quiet: Annotated[bool, common.QUIET] = False,
    **options: Any,
) -> None:
    """Compare the evolved mask with every other method, fine-tuned or not.

    All methods prune the same network to the same budgets and are measured on the same labels:
    those of --test, or the test set of a bundled network; without labels, by agreement with the
    dense network on the validation inputs. A method whose data is missing says so in its row.
    --floor applies to searched masks (evolved, edge-popup); the other methods are as published.
    With --pattern all methods obey the pattern, and sparsity counts blocks or channels; N:M has
    its own sparsity.

    Prints one line per method and one column per sparsity; the folder holds the rows, report.html
    and plots. The exit code is 1 if every method fails.

    Every row is saved as soon as it is known: after a stop, the same command continues.

    Example: gaprune compare mnist-mlp --sparsity 0.9,0.98 --methods magnitude,evolved,imp
    """
    if list_methods:
        _list_methods(as_json=as_json)
        return
    request = make_request(
        common.with_config(common.stated(options), config, trust_code=trust_code)
    )
    folder = Path(out).expanduser() if out else RUNS / f"compare-{slug(request.job.target)}"
    remark = f"the rows so far are in {folder}; the same command without --overwrite continues"
    with redirect_stdout(sys.stderr):  # networks of users may print, but stdout is for results
        target, train, test = request.load()
        with SignalHandler(remark) as signals, RowMonitor(quiet=quiet, signals=signals) as monitor:
            monitor.phase("compare", f"{target.name}, rows in {folder}")
            comparison = compare_target(
                target,
                request.spec,
                data=ComparisonData(train, test),
                out=folder,
                overwrite=overwrite,
                config=HEAD + to_toml(request.as_config()),
                observer=monitor,
            )
    if as_json:
        typer.echo(to_json([row.record() for row in comparison.rows], indent=2))
    else:
        show_comparison(comparison, folder)
    if all(row.error for row in comparison.rows):
        raise typer.Exit(1)


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


def _list_methods(*, as_json: bool) -> None:
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
