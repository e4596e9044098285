"""`gaprune prune`: options → run → result on stdout and in a run directory."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gaprune.cli import common_options as common
from gaprune.cli.options import with_options
from gaprune.errors import InputError

if TYPE_CHECKING:
    from gaprune.callbacks import Observer
    from gaprune.runs.job import PruneJob
    from gaprune.runs.result import Result


@with_options()
def prune_command(  # noqa: PLR0913 # options, each by its own name
    *,
    out: Annotated[
        str | None, common.value("folder for the results (default: a new one in runs/)", "DIR")
    ] = None,
    overwrite: Annotated[bool, common.switch("--overwrite", "replace an earlier run")] = False,
    no_save: Annotated[bool, common.NO_SAVE] = False,
    config: Annotated[Path | None, common.CONFIG] = None,
    trust_code: Annotated[bool, common.TRUST_CODE] = False,
    as_json: Annotated[bool, common.RESULT] = False,
    quiet: Annotated[bool, common.QUIET] = False,
    verbose: Annotated[bool, common.VERBOSE] = False,
    profile: Annotated[bool, common.PROFILE] = False,
    tensorboard: Annotated[str | None, common.TENSORBOARD] = None,
    pairs: Annotated[list[str] | None, common.SET] = None,
    dry_run: Annotated[
        bool,
        common.switch(
            "--dry-run", "print layers, budget, predicted time and memory; prune nothing"
        ),
    ] = False,
    **options: Any,
) -> None:
    """Prune a pretrained network without its training data.

    TARGET is a function that builds your network, path/to/file.py:factory or
    package.module:factory, with --weights FILE; or timm:NAME, hf:NAME, or a bundled network that
    gaprune zoo lists.

    The weights stay frozen: a mask selects those that are kept.

    A factory file is code that is imported and runs: name only files that you trust. Weight files
    never run code, and code that only --config names needs --trust-code.

    Options on the command line take precedence over --config, and --config over the defaults.
    Results go to stdout and to a run directory, progress to stderr. Ctrl-C saves the best mask so
    far; gaprune resume continues a run after that, and after a crash.

    Example: gaprune prune net.py:make --weights net.pt --sparsity 0.9 --range 0,1

    Example: gaprune prune mnist-mlp --sparsity 0.95

    Example: gaprune prune mnist-mlp --max-drop 0.01
    """
    started = time.monotonic()
    from gaprune.runs.job import make_job

    given = common.stated(options)
    given |= common.read_pairs(pairs or (), given)
    job = make_job(common.with_config(given, config, trust_code=trust_code))
    if out is not None and no_save:
        raise InputError("out: cannot be combined with --no-save; leave one of them out")
    if dry_run:
        _predict(job, as_json=as_json, quiet=quiet)
        return
    from gaprune.cli.run_display import Display, run_and_save
    from gaprune.runs.open_directory import open_numbered_run, open_run
    from gaprune.runs.prune import prepare_run

    def prune(observer: Observer) -> tuple[Result, PruneJob]:
        target, test = job.load()
        prepared = prepare_run(
            target,
            job.checked,
            test=test,
            observer=observer,
            run_directory=run_directory,
            job=job,
            started=started,
        )
        return prepared.run(), job

    with ExitStack() as stack:
        run_directory = None
        # open the folder before the search: a run that cannot be saved must fail at once
        if out is not None:
            run_directory = stack.enter_context(open_run(out, overwrite=overwrite))
        elif not no_save:
            drop, sparsity = job.settings.max_drop, job.settings.sparsity
            budget = f"{sparsity:g}" if drop is None else f"drop-{drop:g}"
            stem = common.RUNS / f"{common.slug(job.target)}-{budget}"
            run_directory = stack.enter_context(open_numbered_run(stem))
        display = Display(as_json, quiet, verbose, profile, tensorboard)
        code = run_and_save(prune, run_directory, display)
    raise typer.Exit(code)


def _predict(job: PruneJob, *, as_json: bool, quiet: bool) -> None:
    """Print what a job would do; nothing is imported that only a run needs."""
    from gaprune.cli.console import Monitor, stdout
    from gaprune.cli.result_table import show_dry_run
    from gaprune.io.serialization import to_json
    from gaprune.runs.dry_run import dry_run

    # networks of users may print, but stdout is for results
    with redirect_stdout(sys.stderr), Monitor(quiet=quiet) as monitor:
        monitor.progress("predicting time and memory", 0, None)
        prediction = dry_run(job.load()[0], job.checked, monitor)
    if as_json:
        typer.echo(to_json(prediction.record(), indent=2))
    else:
        show_dry_run(prediction, stdout())
