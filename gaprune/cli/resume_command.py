"""`gaprune resume`: continue a run that was stopped."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gaprune.cli import common_options as common
from gaprune.cli.options import with_changes
from gaprune.config import CHANGEABLE


@with_changes(CHANGEABLE)
def resume_command(  # noqa: PLR0913 # one per option
    *,
    run: Annotated[str, common.RUN],
    trust_code: Annotated[bool, common.TRUST_CODE] = False,
    as_json: Annotated[bool, common.RESULT] = False,
    quiet: Annotated[bool, common.QUIET] = False,
    verbose: Annotated[bool, common.VERBOSE] = False,
    profile: Annotated[bool, common.PROFILE] = False,
    tensorboard: Annotated[str | None, common.TENSORBOARD] = None,
    **options: Any,
) -> None:
    """Continue a run that was stopped by Ctrl-C, a crash or a power cut.

    It continues after the last checkpoint (--checkpoint-every) and finds the masks of the
    undisturbed run bit for bit, also with another number of workers. Network, weights, settings
    and the versions of gaprune and torch must be those of the run. Start it in the folder where
    the run was started: relative paths are kept.

    A run that has ended continues as well if a limit is raised: --generations 60.

    Example: gaprune resume runs/mnist-mlp-0.95

    Example: gaprune resume runs/mnist-mlp-0.95 --workers 4
    """
    from gaprune.cli.run_display import Display, run_and_save
    from gaprune.runs.open_directory import reopen_run
    from gaprune.runs.resume import resume_run

    with reopen_run(run) as run_directory:
        code = run_and_save(
            lambda observer: resume_run(
                run_directory, common.stated(options), observer, trust_code=trust_code
            ),
            run_directory,
            Display(as_json, quiet, verbose, profile, tensorboard),
        )
    raise typer.Exit(code)
