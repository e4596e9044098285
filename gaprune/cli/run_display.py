"""Carry out a run from the command line: its progress, its result on stdout and in a folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from typing import NamedTuple

import typer

from gaprune.callbacks import Observer, ObserverGroup
from gaprune.cli.console import Monitor, stdout
from gaprune.cli.result_table import gain_text, show_profile, show_result
from gaprune.cli.stop_signals import SignalHandler
from gaprune.cli.tensorboard import Events
from gaprune.errors import GapruneError
from gaprune.io.run_files import RECORD, REPORT
from gaprune.io.serialization import to_json
from gaprune.profiling import run_profiler
from gaprune.runs.job import PruneJob
from gaprune.runs.open_directory import OpenRun
from gaprune.runs.result import Result


class Display(NamedTuple):
    """What a command shows of a run."""

    as_json: bool  # the record instead of tables
    quiet: bool  # no progress
    verbose: bool  # layers, one-shot methods and inputs too
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
        where, resumed = "not saved (--no-save)", ""
        if run_directory is not None:
            monitor.progress("saving, and drawing the report", 0, None)
            try:
                run_directory.save(result, job)
                where = str(run_directory.path / REPORT)
            except GapruneError:
                monitor.stop_bar()
                _show(result, None, display)  # a full disk must not lose the search
                raise
            # a run without checkpoints has a result, but cannot be continued
            if result.stopped == "interrupted" and run_directory.resumable:
                resumed = f"; continue with {run_directory.command}"
        monitor.stop_bar()
        _show(result, run_directory, display)
        last = f"{gain_text(result)} → {where}{resumed}"
        if display.as_json:  # stdout holds the record alone
            monitor.say(last)
        else:
            stdout().print(last, markup=False)
    return signals.exit_code


def _show(result: Result, run_directory: OpenRun | None, display: Display) -> None:
    if display.as_json and run_directory is not None:  # with the hashes of the files
        typer.echo((run_directory.folder / RECORD).read_text(encoding="utf-8").rstrip())
    elif display.as_json:
        typer.echo(to_json(result.record(), indent=2))
    else:
        show_result(result, stdout(), verbose=display.verbose)
    if result.profile is not None:
        show_profile(result.profile)
