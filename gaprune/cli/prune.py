"""`gaprune prune`: from options to a job, from a job to a result on the screen and on the disk."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from gaprune.cli import outputs
from gaprune.cli.interrupts import Interrupts
from gaprune.cli.options import with_options
from gaprune.config import Settings, read_config
from gaprune.console import Monitor, show_result, stdout
from gaprune.errors import GapruneError, InputError
from gaprune.formats import to_json
from gaprune.job import Job, make_job
from gaprune.pipeline import prune_target
from gaprune.result import Result
from gaprune.run_directory import check_output, free_name, save, save_numbered

RUNS = Path("runs")  # where results go when no folder is named


@with_options()
def prune_command(
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
    **options: Any,
) -> None:
    """Prune a pretrained network without its training data; its weights stay as they are.

    TARGET is a network of the zoo (see gaprune zoo), or path/to/file.py:factory with --weights
    FILE. A factory file is code: it is imported and runs, so name only files that you trust.
    Weight files never run code.

    The command line goes before --config, which goes before the defaults. Results go to stdout
    and into a run folder, progress goes to stderr. Ctrl-C keeps the best so far.

    Example: gaprune prune mnist-mlp --sparsity 0.95

    Example: gaprune prune mnist-mlp --max-drop 0.01

    Example: gaprune prune net.py:make --weights net.safetensors --sparsity 0.9 --range 0,1
    """
    stated = {name: value for name, value in options.items() if value not in (None, [])}
    job = make_job({**(read_config(config) if config else {}), **stated})
    keep = _Place(job, out, overwrite=overwrite, wanted=not no_save)
    target, test = job.load()
    with Interrupts() as interrupts, Monitor(quiet=quiet, on_phase=interrupts.phase) as monitor:
        result = prune_target(target, job.settings, test=test, observer=monitor)
        interrupts.ending = True
        try:
            saved = keep.save(result)
        except GapruneError:
            _show(result, as_json=as_json)  # the search is not lost for a full disk
            raise
        _show(result, as_json=as_json)
        where = f"saved in {saved}" if saved else "not saved (--no-save)"
        if as_json:
            monitor.say(where)
        else:
            stdout().print(where, markup=False)
    raise typer.Exit(interrupts.exit_code)


class _Place:
    """Where the results go, checked when it is made: before anything is computed."""

    def __init__(self, job: Job, out: str | None, *, overwrite: bool, wanted: bool) -> None:
        if out is not None and not wanted:
            raise InputError("out: cannot be combined with --no-save; leave one of them out")
        self._job, self._out, self._overwrite, self._wanted = job, out, overwrite, wanted
        self._stem = RUNS / f"{slug(job.target)}-{_asked(job.settings)}"
        if wanted:
            check_output(out or free_name(self._stem), overwrite=overwrite)

    def save(self, result: Result) -> Path | None:
        """Save there; returns the folder, or None where nothing is to be saved."""
        if not self._wanted:
            return None
        if self._out is None:
            return save_numbered(result, self._stem, job=self._job)
        try:
            return save(result, self._out, overwrite=self._overwrite, job=self._job)
        except GapruneError:  # taken since the check: what was searched for is kept beside it
            return save_numbered(result, Path(self._out), job=self._job)


def _asked(settings: Settings) -> str:
    """Return in a few characters what is asked for: `0.95`, or `drop-0.01`."""
    if settings.max_drop is None:
        return f"{settings.sparsity:g}"
    return f"drop-{settings.max_drop:g}"


def slug(target: str) -> str:
    """Return what folders of a target are called: `path/to/net.py:make` → `net-make`."""
    return re.sub(r"[^\w.]+", "-", re.sub(r"\.py:", "-", target.replace("\\", "/").split("/")[-1]))


def _show(result: Result, *, as_json: bool) -> None:
    if as_json:
        typer.echo(to_json(result.record(), indent=2))
    else:
        show_result(result, stdout())
