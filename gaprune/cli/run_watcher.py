"""The progress of a run of another process, read from its folder until it ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from gaprune.cli.console import (
    LAST,
    fitness_sign,
    generation_table,
    seconds_left,
    sparkline,
    stdout,
)
from gaprune.formatting import duration, percent
from gaprune.io.serialization import to_json
from gaprune.records import Generation
from gaprune.runs.status import ENDED, RUNNING, RunStatus, read_status

SILENT = (
    "this run records no progress (--checkpoint-every 0, or a one-shot method); its result appears "
    "at its end"
)
ALL = 10_000  # generations in the last table where nothing is redrawn


def _statuses(run: str, every: float) -> Iterator[RunStatus]:
    """Yield the status of a run again and again until it has ended."""
    # polled, not notified: the run may be on another machine that shares the folder
    while (status := read_status(run)).state == RUNNING:
        yield status
        time.sleep(every)
    yield status


def print_json(run: str, every: float) -> RunStatus:
    """Print new generations as lines of JSON until the run ends."""
    printed: tuple[Generation, ...] = ()
    warned = False
    for status in _statuses(run, every):
        warned = _warn_silent(status, warned=warned)
        # --max-drop: another search of the same run has begun, with a new history
        if status.history[: len(printed)] != printed:
            printed = ()
        for record in status.history[len(printed) :]:
            typer.echo(to_json(asdict(record)))
        printed = status.history
    if status.state == ENDED:
        typer.echo(to_json({"result": status.record}))
    return status


def show_progress(run: str, every: float) -> RunStatus:
    """Redraw a table until the run ends; without a terminal, print lines."""
    console = stdout()
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for status in _statuses(run, every):
                live.update(_picture(run, status), refresh=True)
        return status
    printed, warned = 0, False  # a file or a pipe: lines that are printed stay
    for status in _statuses(run, every):
        printed = min(printed, len(status.history))  # a new search has a shorter history
        if status.state != RUNNING:
            break  # the table below has its last generations
        warned = _warn_silent(status, warned=warned)
        for record in status.history[printed:]:
            total = f"/{status.total}" if status.total else ""
            name, sign = fitness_sign([record])
            line = (
                f"generation {record.generation}{total}  agreement {percent(record.validation)}  "
                f"{name} {sign * record.best:.4f}  mean {sign * record.mean:.4f}  "
                f"{record.evaluations:,} evaluations  {duration(record.seconds)}"
            )
            console.print(Text(line))
        printed = len(status.history)
    console.print(_picture(run, status, ALL))
    return status


def _warn_silent(status: RunStatus, *, warned: bool) -> bool:
    """Say once why no progress is shown; return whether it has been said."""
    if status.silent and not warned:
        typer.echo(f"gaprune: {SILENT}", err=True)
    return warned or status.silent


def _picture(run: str, status: RunStatus, last: int = LAST) -> RenderableType:
    target = (status.record or status.config).get("target", "a network in memory")
    owner = f", {status.owner}" if status.owner else ""
    heading = f"{target} in {run}: {status.state}{owner}"
    parts: list[RenderableType] = [Text(heading, style="bold")]
    if status.history:
        parts += [generation_table(status.history, last), Text(_progress(status))]
    elif status.silent:
        parts.append(Text(SILENT))
    elif status.state == RUNNING:
        # the search begins after minutes where inputs are inverted
        parts.append(Text("no generation yet: calibration inputs and baselines come first"))
    if status.record:
        parts += [Text(line) for line in _result(status)]
    return Group(*parts)


def _progress(status: RunStatus) -> str:
    last = status.history[-1]
    parts = [f"agreement {sparkline([record.validation for record in status.history])}"]
    if status.total and status.state == RUNNING:
        parts.append(f"generation {last.generation} of {status.total}")
        if (left := seconds_left(status.history, status.total)) is not None:
            parts.append(f"about {duration(left)} left")
    return "  ".join(parts)


def _result(status: RunStatus) -> list[str]:
    record = status.record
    agreement, accuracy = record.get("agreement") or {}, record.get("accuracy") or {}
    removed = percent((record.get("sparsity") or {}).get("actual"))
    validation = percent(agreement.get("validation"))
    lines = [f"{removed} of prunable weights removed, agreement on validation inputs {validation}"]
    if accuracy.get("pruned") is not None:
        dense = percent(accuracy.get("dense"))
        lines[0] += f", test accuracy {percent(accuracy['pruned'])} (dense {dense})"
    if record.get("seconds") is not None:
        lines.append(f"{duration(record['seconds'])}, ended: {record.get('stopped')}")
    return lines
