"""`gaprune compare`: every method on one table, and what the missing data costs."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from gaprune.cli import common_options as common
from gaprune.cli.options import with_options
from gaprune.runs.option_keys import COMPARISON_KEYS, UNUSED

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
    from gaprune.cli.comparison_table import RowMonitor, list_all_methods, show_comparison
    from gaprune.cli.stop_signals import SignalHandler
    from gaprune.comparison import ComparisonData, compare_target
    from gaprune.comparison.comparison_request import make_request
    from gaprune.io.serialization import to_json, to_toml

    if list_methods:
        list_all_methods(as_json=as_json)
        return
    request = make_request(
        common.with_config(common.stated(options), config, trust_code=trust_code)
    )
    folder = (
        Path(out).expanduser()
        if out
        else common.RUNS / f"compare-{common.slug(request.job.target)}"
    )
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
