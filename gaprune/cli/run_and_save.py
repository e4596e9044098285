"""A pruning run from its start to the screen and the disk, whatever ends it; for two commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout

import typer

from gaprune.callbacks import Observer, ObserverGroup
from gaprune.cli.console import Monitor, show_result, stdout
from gaprune.cli.profile_table import show_profile
from gaprune.cli.signal_handling import SignalHandler
from gaprune.cli.tensorboard import Events
from gaprune.errors import GapruneError
from gaprune.io.serialization import to_json
from gaprune.profiling import run_profiler
from gaprune.runs.job import PruneJob
from gaprune.runs.open_directory import OpenRun
from gaprune.runs.result import Result


def carry_out(
    work: Callable[[Observer], tuple[Result, PruneJob | None]],
    run_directory: OpenRun | None,
    *,
    as_json: bool,
    quiet: bool,
    profile: bool,
    tensorboard: str | None = None,
) -> int:
    """Do the work, show and save what comes of it, and return the exit code.

    Args:
        work: finds the result, and says what was asked for.
        run_directory: the folder that the result is saved in; None saves nothing.
        as_json: print the record instead of a table.
        quiet: no progress.
        profile: measure where the time goes, and show it on stderr.
        tensorboard: folder for events; None writes none.

    Raises:
        GapruneError: the events cannot be written; nothing has been computed then.
    """
    with (
        nullcontext() if tensorboard is None else Events(tensorboard) as events,
        SignalHandler() as interrupts,
        Monitor(quiet=quiet, on_phase=interrupts.phase) as monitor,
    ):
        told: Observer = monitor if events is None else ObserverGroup(monitor, events)
        try:
            # stdout is for results, whatever others print
            with redirect_stdout(sys.stderr), run_profiler(enabled=profile) as profiler:
                result, job = work(told)
            result = result.timed(profiler)
        except KeyboardInterrupt:
            if run_directory is not None and run_directory.keep_files:
                interrupts.remark = f"{run_directory.command} goes on"
            raise
        interrupts.ending = True
        if run_directory is not None:
            monitor.progress("saving, and drawing the report", 0, None)
        where = "not saved (--no-save)"
        if run_directory is not None:
            try:
                where = f"saved in {run_directory.save(result, job)}"
            except GapruneError:
                monitor.stop_bar()
                _show(result, as_json=as_json)  # the search is not lost for a full disk
                raise
            if result.stopped == "interrupted" and run_directory.resumable:
                where += f"; {run_directory.command} goes on"
        monitor.stop_bar()
        _show(result, as_json=as_json)
        if as_json:
            monitor.say(where)
        else:
            stdout().print(where, markup=False)
    return interrupts.exit_code


def _show(result: Result, *, as_json: bool) -> None:
    if as_json:
        typer.echo(to_json(result.record(), indent=2))
    else:
        show_result(result, stdout())
    if result.profile is not None:
        show_profile(result.profile)
