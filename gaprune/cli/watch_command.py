"""`gaprune watch`: how far a run of another process is."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from gaprune.cli import common_options as outputs
from gaprune.cli.console import duration, percent, stdout
from gaprune.cli.live import LAST, generation_table, sparkline
from gaprune.errors import GapruneError
from gaprune.io.serialization import to_json
from gaprune.records import Generation, as_json
from gaprune.runs.status import ENDED, RUNNING, STOPPED, Sight, look

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


def _stream(run: str, every: float) -> Sight:
    """Print what is new as lines of JSON, until the run ends."""
    told: tuple[Generation, ...] = ()
    said = False
    while True:
        sight = look(run)
        said = _say_silent(sight, said=said)
        if sight.history[: len(told)] != told:
            told = ()  # another search of the same run has begun
        for one in sight.history[len(told) :]:
            typer.echo(to_json(as_json(one)))
        told = sight.history
        if sight.state != RUNNING:
            if sight.state == ENDED:
                typer.echo(to_json({"result": sight.record}))
            return sight
        time.sleep(every)


def _show(run: str, every: float) -> Sight:
    """Redraw a table until the run ends; where nothing can be redrawn, print lines."""
    console = stdout()
    sight = look(run)
    if console.is_terminal:
        with Live(_picture(run, sight), console=console, auto_refresh=False) as live:
            while sight.state == RUNNING:
                time.sleep(every)
                sight = look(run)
                live.update(_picture(run, sight), refresh=True)
        return sight
    told, said = 0, False
    while sight.state == RUNNING:
        said = _say_silent(sight, said=said)
        for one in sight.history[told:]:
            console.print(Text(_line(one, sight.total)))
        told = len(sight.history)
        time.sleep(every)
        sight = look(run)
        told = min(told, len(sight.history))
    console.print(_picture(run, sight, TALLEST))
    return sight


def _say_silent(sight: Sight, *, said: bool) -> bool:
    """Say once why nothing is shown; return whether it is said."""
    if sight.silent and not said:
        typer.echo(f"gaprune: {SILENT}", err=True)
    return said or sight.silent


def _line(one: Generation, total: int | None) -> str:
    of = f"/{total}" if total else ""
    return (
        f"generation {one.generation}{of}  best {one.best:.4f}  mean {one.mean:.4f}  "
        f"validation {percent(one.validation)}  {one.evaluations:,} evaluations  {duration(one.seconds)}"
    )


def _picture(run: str, sight: Sight, last: int = LAST) -> RenderableType:
    parts: list[RenderableType] = [Text(_heading(run, sight), style="bold")]
    if sight.history:
        parts += [generation_table(sight.history, last), Text(_progress(sight))]
    elif sight.silent:
        parts.append(Text(SILENT))
    elif sight.state == RUNNING:
        parts.append(Text("no generation yet: calibration inputs and baselines are made first"))
    if sight.record:
        parts += [Text(line) for line in _result(sight)]
    return Group(*parts)


def _heading(run: str, sight: Sight) -> str:
    known = sight.record or sight.config
    target = known.get("target", "a network in memory")
    who = f", {sight.owner}" if sight.owner else ""
    return f"{target} in {run}: {sight.state}{who}"


def _progress(sight: Sight) -> str:
    last = sight.history[-1]
    parts = [f"validation {sparkline([one.validation for one in sight.history])}"]
    if sight.total and sight.state == RUNNING:
        parts.append(f"generation {last.generation} of {sight.total}")
        first = sight.history[0]
        done = last.generation - first.generation
        if done:
            left = (last.seconds - first.seconds) / done * (sight.total - last.generation)
            parts.append(f"about {duration(left)} left")
    return "  ".join(parts)


def _result(sight: Sight) -> list[str]:
    record = sight.record
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
