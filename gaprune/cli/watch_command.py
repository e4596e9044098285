"""`gaprune watch`: show the progress of a run of another process."""

from __future__ import annotations

from typing import Annotated

import typer

from gaprune.cli import common_options as common
from gaprune.errors import GapruneError

INTERRUPTED = 130  # exit code after Ctrl-C, as in shells


def watch_command(
    *,
    run: Annotated[str, common.RUN],
    every: Annotated[
        float, typer.Option(help="seconds between updates", min=0.05, metavar="SECONDS")
    ] = 1.0,
    json_lines: Annotated[
        bool,
        common.switch(
            "--json", "print every generation as a line of JSON, and the result as the last line"
        ),
    ] = False,
) -> None:
    """Show the progress of a run until it ends.

    The run may belong to another process, or have ended. The exit code is 1 if it was stopped
    before it had a result.

    Watching only reads: Ctrl-C stops the watching, not the run. A run that records no progress
    (--checkpoint-every 0, one-shot methods) shows its result only.

    Example: gaprune watch runs/mnist-mlp-0.95

    Example: gaprune watch runs/mnist-mlp-0.95 --json
    """
    from gaprune.cli.run_watcher import print_json, show_progress
    from gaprune.runs.status import STOPPED

    try:
        status = print_json(run, every) if json_lines else show_progress(run, every)
    except KeyboardInterrupt:
        typer.echo("gaprune: stopped watching; the run itself continues", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if status.state == STOPPED:
        raise GapruneError(
            f"run: {run} was stopped before it had a result; continue it with gaprune resume {run}"
        )
