"""`gaprune demo`: the table that the README opens with."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from gaprune.cli import common_options as outputs
from gaprune.cli.console import Monitor, add_row, stdout, table
from gaprune.cli.demo_run import FAST, SPARSITIES, TARGET, Demo, run_demo
from gaprune.cli.prune_command import RUNS
from gaprune.cli.signal_handling import SignalHandler
from gaprune.config import EVOLVED
from gaprune.formatting import duration, percent
from gaprune.io.run_files import REPORT
from gaprune.io.serialization import to_json
from gaprune.models.zoo import ZOO
from gaprune.runs.job import make_job
from gaprune.runs.open_directory import open_numbered_run


def demo_command(
    *,
    fast: Annotated[bool, typer.Option("--fast", help="fewer generations")] = False,
    seed: Annotated[int, typer.Option(help="of every random choice", min=0, metavar="INT")] = 0,
    no_save: Annotated[
        bool, typer.Option("--no-save", help="write no folder", rich_help_panel=outputs.OUTPUT)
    ] = False,
    as_json: Annotated[bool, outputs.ROWS] = False,
    quiet: Annotated[bool, outputs.QUIET] = False,
) -> None:
    """Prune a real network to 2 % of its weights without data.

    Prints the accuracy of gaprune and of the usual methods. Takes one to two minutes. The run with
    the most removed, and its report, go to a new folder in runs/.

    Example: gaprune demo
    """
    settings = {"seed": seed, **(FAST if fast else {})}
    with ExitStack() as stack:
        run_directory = None if no_save else stack.enter_context(open_numbered_run(RUNS / "demo"))
        stack.enter_context(SignalHandler())
        monitor = stack.enter_context(Monitor(quiet=quiet))
        found = run_demo(monitor, settings)
        if run_directory is not None:
            job = make_job({"target": TARGET, "sparsity": SPARSITIES[-1], **settings})
            run_directory.save(found.results[-1], job)
    if as_json:
        typer.echo(to_json(found.rows(), indent=2))
    else:
        show_demo(found, None if run_directory is None else run_directory.path / REPORT)


def show_demo(found: Demo, report: Path | None) -> None:
    """Print the table, what it shows, where its report is, and how to go on."""
    console = stdout()
    columns = (f"{percent(sparsity)} removed" for sparsity in SPARSITIES)
    shown = table("test accuracy", *columns, title=f"{TARGET} ({ZOO[TARGET].description})")
    add_row(shown, ["dense network", *[percent(found.dense_accuracy)] * len(SPARSITIES)])
    for method in found.methods:
        cells = [percent(found.accuracy(method, result)) for result in found.results]
        name = "gaprune" if method == EVOLVED else method
        add_row(shown, [name, *cells], strong=method == EVOLVED)
    console.print(shown)
    seconds = sum(result.seconds for result in found.results)
    sources = "; ".join(found.results[0].provenance.sources)
    command = _command()
    lines = (
        "No training image and no label was shown to the search, and no weight was changed:",
        f"all {found.compared:,} values that stay are bit-identical to the checkpoint.",
        f"Shown to the network: {sources}.",
        f"The 10,000 test images were used for this table only. {duration(seconds)} in all.",
        *([] if report is None else [f"See it: open {report} in a browser."]),
        "",
        "Go on with",
        f"  {command} prune {TARGET} --sparsity 0.98   saves the pruned network in runs/",
        f"  {command} zoo                              lists the networks that come along",
        f"  {command} prune --help                     tells how to prune your own network",
    )
    for line in lines:
        console.print(line, markup=False)


def _command() -> str:
    """Return what to type for gaprune here: after `make`, its environment is not on the path."""
    return "gaprune" if shutil.which("gaprune") else os.path.relpath(sys.argv[0])
