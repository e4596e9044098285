"""`gaprune compare`: every method on one table, and what the missing data costs."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from gaprune.cli import common_options as outputs
from gaprune.cli.comparison_table import WIDEST, show_comparison
from gaprune.cli.console import Monitor, add_row, stdout, table
from gaprune.cli.options import with_options
from gaprune.cli.prune_command import RUNS, slug
from gaprune.cli.signal_handling import SignalHandler
from gaprune.comparison import ComparisonData, Row, added_methods, compare_target, methods
from gaprune.comparison.comparison_job import COMPARISON_KEYS, make_request
from gaprune.comparison.context import ComparisonObserver, part_name
from gaprune.comparison.spec import UNUSED
from gaprune.comparison.tables import needs_text
from gaprune.config import read_config
from gaprune.formatting import duration, percent
from gaprune.io.serialization import to_json, to_toml

ROOMY = 120  # columns from which on sources have a place
HEAD = "# gaprune compare --config THIS_FILE repeats this; paths are as they were given.\n"


@with_options(keys=COMPARISON_KEYS, leave_out=UNUSED)
def compare_command(
    *,
    list_methods: Annotated[
        bool, typer.Option("--list-methods", help="list the methods and leave")
    ] = False,
    out: Annotated[
        str | None,
        outputs.folder(
            "folder for the rows (default: runs/compare-TARGET); it goes on with rows there"
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        outputs.overwrite("throw earlier rows away"),
    ] = False,
    config: Annotated[
        Path | None,
        outputs.config("a comparison's config.toml"),
    ] = None,
    as_json: Annotated[bool, outputs.ROWS] = False,
    quiet: Annotated[bool, outputs.QUIET] = False,
    **options: Any,
) -> None:
    """Compare the evolved mask with every other method, tuned or not.

    All methods prune the same network to the same budgets and are measured on the same held-out
    labels: those of --test, or of a zoo network's test set; without any, the agreement with the
    dense network on the validation inputs calibration inputs. A method that needs what is not there says so in its row.
    --floor holds for the masks that are searched for (evolved, edge-popup), the others are as they
    were published. Under --pattern all of them obey it, and a method that has no place there says
    so; sparsity then counts blocks or channels, and N:M says it itself.

    Prints one line a method, one column a sparsity; the folder has the rows, report.html and plots.
    The exit code is 1 where no method has a figure.

    Every row is on the disk as soon as it is known: stop at any time, and the same command goes on.

    Example: gaprune compare mnist-mlp --sparsity 0.9,0.98 --methods magnitude,evolved,imp-linear
    """
    if list_methods:
        _list_methods(as_json=as_json)
        return
    stated = {name: value for name, value in options.items() if value not in (None, [])}
    request = make_request({**(read_config(config) if config else {}), **stated})
    place = Path(out).expanduser() if out else RUNS / f"compare-{slug(request.job.target)}"
    remark = f"the rows so far are in {place}; the same command without --overwrite goes on"
    with redirect_stdout(sys.stderr):  # stdout is for results, whatever the user's network prints
        target, train, test = request.load()
        with SignalHandler(remark), _Teller(quiet=quiet) as teller:
            teller.phase("compare", f"{target.name}, rows in {place}")
            found = compare_target(
                target,
                request.spec,
                data=ComparisonData(train, test),
                out=place,
                overwrite=overwrite,
                config=HEAD + to_toml(request.as_config()),
                observer=teller,
            )
    if as_json:
        typer.echo(to_json([row.record() for row in found.rows], indent=2))
    else:
        show_comparison(found, place)
    if all(row.error for row in found.rows):
        raise typer.Exit(1)


class _Teller(Monitor, ComparisonObserver):
    """A monitor that writes a line for every row; of rows that fail alike, for the first one."""

    def __init__(self, *, quiet: bool) -> None:
        super().__init__(quiet=quiet)
        self._failed: set[tuple[str, str]] = set()

    def row(self, row: Row, done: int, total: int) -> None:
        """Say what has come out."""
        self.stop_bar()
        if row.error is not None and (row.method, row.error) in self._failed:
            return
        if row.error is not None:
            self._failed.add((row.method, row.error))
        figure = f"{percent(row.score)} in {duration(row.seconds)}"
        what = row.error or row.note or figure
        self.say(f"{done}/{total} {part_name(row.method, row.seed, row.sparsity)}: {what}")


def _list_methods(*, as_json: bool) -> None:
    known = [*methods().values(), *added_methods().values()]
    if as_json:
        stated = ("name", "description", "source", "needs", "seeded", "path")
        typer.echo(to_json([{key: asdict(one)[key] for key in stated} for one in known], indent=2))
        return
    console = stdout()
    if not console.is_terminal:
        console.width = WIDEST
    head = ("method", "needs", "what it does", "source")[: None if console.width >= ROOMY else -1]
    shown = table(*head, title="Methods of gaprune compare")
    for column in shown.columns:
        column.justify = "left"
    for one in known:
        add_row(shown, [one.name, needs_text(one.needs), one.description, one.source][: len(head)])
    console.print(shown)
