"""`gaprune prune`: from options to a job, from a job to a result on the screen and on the disk."""

from __future__ import annotations

import contextlib
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from gaprune.callbacks import Observer
from gaprune.cli import common_options as outputs
from gaprune.cli.console import Monitor, stdout
from gaprune.cli.dry_run_table import show_dry_run
from gaprune.cli.options import with_options
from gaprune.cli.run_and_save import carry_out
from gaprune.cli.set_option import read_pairs
from gaprune.config import Settings, read_config
from gaprune.errors import InputError
from gaprune.io.serialization import to_json
from gaprune.runs.dry_run import dry_run
from gaprune.runs.job import PruneJob, make_job
from gaprune.runs.open_directory import open_numbered_run, open_run
from gaprune.runs.prune import prune_target
from gaprune.runs.result import Result

RUNS = Path("runs")  # where results go when no folder is named


@with_options()
def prune_command(  # noqa: PLR0913 # options, each by its own name
    *,
    out: Annotated[
        str | None,
        outputs.folder("folder for the results (default: a new one in runs/)"),
    ] = None,
    overwrite: Annotated[bool, outputs.overwrite("replace an earlier run")] = False,
    no_save: Annotated[
        bool, typer.Option("--no-save", help="write no folder", rich_help_panel=outputs.OUTPUT)
    ] = False,
    config: Annotated[
        Path | None,
        outputs.config("a run's config.toml"),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="print result.json to stdout", rich_help_panel=outputs.OUTPUT),
    ] = False,
    quiet: Annotated[bool, outputs.QUIET] = False,
    profile: Annotated[bool, outputs.PROFILE] = False,
    tensorboard: Annotated[str | None, outputs.TENSORBOARD] = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="any key of config.toml: steps=50; may be repeated",
            metavar="KEY=VALUE",
            rich_help_panel=outputs.OUTPUT,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="show layers, budget, time and memory, and prune nothing",
            rich_help_panel=outputs.OUTPUT,
        ),
    ] = False,
    **options: Any,
) -> None:
    """Prune a pretrained network without its training data.

    No weight changes: a mask says which of them stay.

    TARGET is a network of the zoo (see gaprune zoo), or path/to/file.py:factory with --weights
    FILE. A factory file is code: it is imported and runs, so name only files that you trust.
    Weight files never run code.

    The command line goes before --config, which goes before the defaults. Results go to stdout
    and into a run folder, progress goes to stderr. Ctrl-C keeps the best so far, and gaprune
    resume goes on after that or after any other end.

    Example: gaprune prune mnist-mlp --sparsity 0.95

    Example: gaprune prune mnist-mlp --max-drop 0.01

    Example: gaprune prune mnist-cnn --sparsity 0.98 --dry-run

    Example: gaprune prune net.py:make --weights net.safetensors --sparsity 0.9 --range 0,1
    """
    stated = {name: value for name, value in options.items() if value not in (None, [])}
    filed = read_config(config) if config else {}
    job = make_job({**filed, **read_pairs(pairs or (), stated), **stated})
    if out is not None and no_save:
        raise InputError("out: cannot be combined with --no-save; leave one of them out")
    if dry_run:
        _foresee(job, as_json=as_json, quiet=quiet)
        return

    def work(observer: Observer) -> tuple[Result, PruneJob]:
        target, test = job.load()
        result = prune_target(
            target, job.settings, test=test, observer=observer, run_directory=run_directory, job=job
        )
        return result, job

    with contextlib.ExitStack() as stack:
        run_directory = None
        if out is not None:
            run_directory = stack.enter_context(open_run(out, overwrite=overwrite))
        elif not no_save:
            stem = RUNS / f"{slug(job.target)}-{_asked(job.settings)}"
            run_directory = stack.enter_context(open_numbered_run(stem))
        code = carry_out(
            work,
            run_directory,
            as_json=as_json,
            quiet=quiet,
            profile=profile,
            tensorboard=tensorboard,
        )
    raise typer.Exit(code)


def _foresee(job: PruneJob, *, as_json: bool, quiet: bool) -> None:
    # stdout is for results, whatever others print
    with redirect_stdout(sys.stderr), Monitor(quiet=quiet) as monitor:
        monitor.progress("trying what a search does", 0, None)
        target, _ = job.load()
        found = dry_run(target, job.settings)
    if as_json:
        typer.echo(to_json(found.record(), indent=2))
    else:
        show_dry_run(found, stdout())


def _asked(settings: Settings) -> str:
    """Return in a few characters what is asked for: `0.95`, or `drop-0.01`."""
    if settings.max_drop is None:
        return f"{settings.sparsity:g}"
    return f"drop-{settings.max_drop:g}"


def slug(target: str) -> str:
    """Return what folders of a target are called: `path/to/net.py:make` → `net-make`."""
    return re.sub(r"[^\w.]+", "-", re.sub(r"\.py:", "-", target.replace("\\", "/").split("/")[-1]))
