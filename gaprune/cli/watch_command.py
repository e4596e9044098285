"""`gaprune watch`: how far a run of another process is."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from gaprune.cli import common_options as outputs
from gaprune.cli.console import stdout
from gaprune.cli.live import LAST, generation_table, sparkline
from gaprune.errors import GapruneError
from gaprune.formatting import duration, percent
from gaprune.io.serialization import to_json
from gaprune.records import Generation, as_json
from gaprune.runs.status import ENDED, RUNNING, STOPPED, RunStatus, read_status

INTERRUPTED = 130  # as shells count Ctrl-C
SILENT = (
    "it keeps nothing while it goes on (--checkpoint-every 0, or a method without a search): "
    "what comes of it is shown at its end"
)
TALLEST = 10_000  # generations that are shown where nothing is redrawn


def watch_command(
    *,
    run: Annotated[
        str, typer.Argument(help="folder of the run", metavar="RUN", show_default=False)
    ],
    every: Annotated[
        float,
        typer.Option(help="seconds between two looks", min=0.05, metavar="SECONDS"),
    ] = 1.0,
    json_lines: Annotated[
        bool,
        typer.Option(
            "--json",
            help="print every generation as a line of JSON, and the result as the last one",
            rich_help_panel=outputs.OUTPUT,
        ),
    ] = False,
) -> None:
    """Show how far a run is, until it ends.

    It may be another process's, or have ended. The exit code is 1 where it was stopped before it
    had a result.

    The run is only read: watching changes nothing, and Ctrl-C ends the watching alone. A run that
    keeps nothing while it goes on (--checkpoint-every 0, one-shot methods) shows its end only.

    Example: gaprune watch runs/mnist-mlp-0.95

    Example: gaprune watch runs/mnist-mlp-0.95 --json
    """
    try:
        end = _stream(run, every) if json_lines else _show(run, every)
    except KeyboardInterrupt:
        typer.echo("gaprune: no longer watching; the run itself is not touched", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if end.state == STOPPED:
        raise GapruneError(
            f"run: {run} was stopped before it had a result; gaprune resume {run} goes on with it"
        )


def _stream(run: str, every: float) -> RunStatus:
    """Print what is new as lines of JSON, until the run ends."""
    told: tuple[Generation, ...] = ()
    said = False
    while True:
        status = read_status(run)
        said = _say_silent(status, said=said)
        if status.history[: len(told)] != told:
            told = ()  # another search of the same run has begun
        for one in status.history[len(told) :]:
            typer.echo(to_json(as_json(one)))
        told = status.history
        if status.state != RUNNING:
            if status.state == ENDED:
                typer.echo(to_json({"result": status.record}))
            return status
        time.sleep(every)


def _show(run: str, every: float) -> RunStatus:
    """Redraw a table until the run ends; where nothing can be redrawn, print lines."""
    console = stdout()
    status = read_status(run)
    if console.is_terminal:
        with Live(_picture(run, status), console=console, auto_refresh=False) as live:
            while status.state == RUNNING:
                time.sleep(every)
                status = read_status(run)
                live.update(_picture(run, status), refresh=True)
        return status
    told, said = 0, False
    while status.state == RUNNING:
        said = _say_silent(status, said=said)
        for one in status.history[told:]:
            console.print(Text(_line(one, status.total)))
        told = len(status.history)
        time.sleep(every)
        status = read_status(run)
        told = min(told, len(status.history))
    console.print(_picture(run, status, TALLEST))
    return status


def _say_silent(status: RunStatus, *, said: bool) -> bool:
    """Say once why nothing is shown; return whether it is said."""
    if status.silent and not said:
        typer.echo(f"gaprune: {SILENT}", err=True)
    return said or status.silent


def _line(one: Generation, total: int | None) -> str:
    of = f"/{total}" if total else ""
    return (
        f"generation {one.generation}{of}  best {one.best:.4f}  mean {one.mean:.4f}  "
        f"validation {percent(one.validation)}  {one.evaluations:,} evaluations  {duration(one.seconds)}"
    )


def _picture(run: str, status: RunStatus, last: int = LAST) -> RenderableType:
    parts: list[RenderableType] = [Text(_heading(run, status), style="bold")]
    if status.history:
        parts += [generation_table(status.history, last), Text(_progress(status))]
    elif status.silent:
        parts.append(Text(SILENT))
    elif status.state == RUNNING:
        parts.append(Text("no generation yet: calibration inputs and baselines are made first"))
    if status.record:
        parts += [Text(line) for line in _result(status)]
    return Group(*parts)


def _heading(run: str, status: RunStatus) -> str:
    known = status.record or status.config
    target = known.get("target", "a network in memory")
    who = f", {status.owner}" if status.owner else ""
    return f"{target} in {run}: {status.state}{who}"


def _progress(status: RunStatus) -> str:
    last = status.history[-1]
    parts = [f"validation {sparkline([one.validation for one in status.history])}"]
    if status.total and status.state == RUNNING:
        parts.append(f"generation {last.generation} of {status.total}")
        first = status.history[0]
        done = last.generation - first.generation
        if done:
            left = (last.seconds - first.seconds) / done * (status.total - last.generation)
            parts.append(f"about {duration(left)} left")
    return "  ".join(parts)


def _result(status: RunStatus) -> list[str]:
    record = status.record
    agreement, accuracy = record.get("agreement") or {}, record.get("accuracy") or {}
    removed = percent((record.get("sparsity") or {}).get("actual"))
    validation = percent(agreement.get("validation"))
    lines = [f"{removed} of the weights removed, agreement on the validation inputs {validation}"]
    if accuracy.get("pruned") is not None:
        dense = percent(accuracy.get("dense"))
        lines[0] += f", test accuracy {percent(accuracy['pruned'])} (dense {dense})"
    if record.get("seconds") is not None:
        lines.append(f"{duration(record['seconds'])}, ended: {record.get('stopped')}")
    return lines
