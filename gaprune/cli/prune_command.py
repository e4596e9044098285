"""`gaprune prune`: options → run → result on stdout and in a run directory."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from gaprune.callbacks import Observer, ObserverGroup
from gaprune.cli import common_options as common
from gaprune.cli.console import Monitor, stdout
from gaprune.cli.options import with_options
from gaprune.cli.result_table import show_dry_run, show_profile, show_result
from gaprune.cli.stop_signals import SignalHandler
from gaprune.cli.tensorboard import Events
from gaprune.errors import GapruneError, InputError
from gaprune.io.run_files import RECORD
from gaprune.io.serialization import to_json
from gaprune.profiling import run_profiler
from gaprune.runs.dry_run import dry_run as predict
from gaprune.runs.job import PruneJob, make_job
from gaprune.runs.open_directory import OpenRun, open_numbered_run, open_run
from gaprune.runs.prune import prepare_run
from gaprune.runs.result import Result

RUNS = Path("runs")  # where results go without --out


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

    The weights stay frozen: a mask selects those that are kept.

    TARGET is a network of the zoo (see gaprune zoo), path/to/file.py:factory with --weights FILE,
    timm:NAME or hf:NAME. A factory file is code that is imported and runs: name only files that
    you trust. Weight files never run code, and code that only --config names needs --trust-code.

    Options on the command line take precedence over --config, and --config over the defaults.
    Results go to stdout and to a run directory, progress to stderr. Ctrl-C saves the best mask so
    far; gaprune resume continues a run after that, and after a crash.

    Example: gaprune prune mnist-mlp --sparsity 0.95

    Example: gaprune prune mnist-mlp --max-drop 0.01

    Example: gaprune prune mnist-cnn --sparsity 0.98 --dry-run

    Example: gaprune prune net.py:make --weights net.safetensors --sparsity 0.9 --range 0,1
    """
    started = time.monotonic()
    given = common.stated(options)
    given |= common.read_pairs(pairs or (), given)
    job = make_job(common.with_config(given, config, trust_code=trust_code))
    if out is not None and no_save:
        raise InputError("out: cannot be combined with --no-save; leave one of them out")
    if dry_run:
        # networks of users may print, but stdout is for results
        with redirect_stdout(sys.stderr), Monitor(quiet=quiet) as monitor:
            monitor.progress("predicting time and memory", 0, None)
            prediction = predict(job.load()[0], job.checked)
        if as_json:
            typer.echo(to_json(prediction.record(), indent=2))
        else:
            show_dry_run(prediction, stdout())
        return

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
            stem = RUNS / f"{slug(job.target)}-{budget}"
            run_directory = stack.enter_context(open_numbered_run(stem))
        display = Display(as_json, quiet, profile, tensorboard)
        code = run_and_save(prune, run_directory, display)
    raise typer.Exit(code)


def slug(target: str) -> str:
    """Return the folder name of a target: `path/to/net.py:make` → `net-make`."""
    return re.sub(r"[^\w.]+", "-", re.sub(r"\.py:", "-", target.replace("\\", "/").split("/")[-1]))


class Display(NamedTuple):
    """What a command shows of a run."""

    as_json: bool  # the record instead of tables
    quiet: bool  # no progress
    profile: bool  # measure where the time goes, and print it on stderr
    tensorboard: str | None  # folder for events


def run_and_save(
    run: Callable[[Observer], tuple[Result, PruneJob | None]],
    run_directory: OpenRun | None,
    display: Display,
) -> int:
    """Carry out a run, print and save its result, and return the exit code.

    `run` returns the result and its job; `run_directory` None saves nothing.

    Raises:
        GapruneError: the events cannot be written; nothing has been computed then.
    """
    folder = display.tensorboard
    with (
        nullcontext() if folder is None else Events(folder) as events,
        SignalHandler() as signals,
        Monitor(quiet=display.quiet, signals=signals) as monitor,
    ):
        observer: Observer = monitor if events is None else ObserverGroup(monitor, events)
        try:
            # networks of users may print, but stdout is for results
            with redirect_stdout(sys.stderr), run_profiler(enabled=display.profile) as profiler:
                result, job = run(observer)
            result = result.timed(profiler)
        except KeyboardInterrupt:
            if run_directory is not None and run_directory.keep_files:
                signals.remark = f"continue with {run_directory.command}"
            raise
        signals.saving = True  # from here on the first Ctrl-C does not interrupt
        where = "not saved (--no-save)"
        if run_directory is not None:
            monitor.progress("saving, and drawing the report", 0, None)
            try:
                where = f"saved in {run_directory.save(result, job)}"
            except GapruneError:
                monitor.stop_bar()
                _show(result, None, as_json=display.as_json)  # a full disk must not lose the search
                raise
            # a run without checkpoints has a result, but cannot be continued
            if result.stopped == "interrupted" and run_directory.resumable:
                where += f"; continue with {run_directory.command}"
        monitor.stop_bar()
        _show(result, run_directory, as_json=display.as_json)
        if display.as_json:  # stdout holds the record alone
            monitor.say(where)
        else:
            stdout().print(where, markup=False)
    return signals.exit_code


def _show(result: Result, run_directory: OpenRun | None, *, as_json: bool) -> None:
    if as_json and run_directory is not None:  # with the hashes of the files
        typer.echo((run_directory.folder / RECORD).read_text(encoding="utf-8").rstrip())
    elif as_json:
        typer.echo(to_json(result.record(), indent=2))
    else:
        show_result(result, stdout())
    if result.profile is not None:
        show_profile(result.profile)
