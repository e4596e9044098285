"""`gaprune resume`: a run that was stopped goes on."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gaprune.cli import common_options as outputs
from gaprune.cli.options import with_changes
from gaprune.cli.run_and_save import carry_out
from gaprune.runs.open_directory import reopen_run
from gaprune.runs.resume import CHANGEABLE, go_on


@with_changes(CHANGEABLE)
def resume_command(
    *,
    run: Annotated[
        str, typer.Argument(help="folder of the run", metavar="RUN", show_default=False)
    ],
    as_json: Annotated[
        bool,
        typer.Option("--json", help="print result.json to stdout", rich_help_panel=outputs.OUTPUT),
    ] = False,
    quiet: Annotated[bool, outputs.QUIET] = False,
    profile: Annotated[bool, outputs.PROFILE] = False,
    tensorboard: Annotated[str | None, outputs.TENSORBOARD] = None,
    **options: Any,
) -> None:
    """Go on with a run that was stopped: Ctrl-C, a crash, a power cut.

    It goes on after the last generation that was kept (--checkpoint-every) and finds the masks
    that the undisturbed run would have found, bit for bit, also with another number of workers.
    Network, weights, settings and the versions of gaprune and torch must be those of the run.
    Start it in the same folder: paths are as they were given.

    A run that had ended goes on as well where a limit leaves room: --generations 60.

    Example: gaprune resume runs/mnist-mlp-0.95

    Example: gaprune resume runs/mnist-mlp-0.95 --workers 4
    """
    changes = {name: value for name, value in options.items() if value is not None}
    with reopen_run(run) as run_directory:
        code = carry_out(
            lambda observer: go_on(run_directory, changes, observer),
            run_directory,
            as_json=as_json,
            quiet=quiet,
            profile=profile,
            tensorboard=tensorboard,
        )
    raise typer.Exit(code)
