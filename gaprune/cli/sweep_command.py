"""`gaprune sweep`: thresholds or codebooks from mild to harsh, and how far one can go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gaprune.calibration.samples import Samples
from gaprune.cli import common_options as outputs
from gaprune.cli.completion import among
from gaprune.cli.console import Monitor, add_row, stdout, table
from gaprune.cli.options import with_options
from gaprune.cli.prune_command import RUNS, slug
from gaprune.cli.signal_handling import SignalHandler
from gaprune.comparison.sweep_network import generated_validation
from gaprune.comparison.sweeps import SWEEPS, SweepOptions, SweepResult, sweep
from gaprune.config import Settings
from gaprune.errors import GapruneError, InputError, unknown_name
from gaprune.formatting import MISSING, percent, points
from gaprune.io.serialization import to_json
from gaprune.runs.directory import load_masks
from gaprune.runs.job import make_job
from gaprune.runs.open_directory import free_name
from gaprune.runs.option_keys import number, numbers

PLOTS = ("sweep.svg", "sweep.png")
UNUSED = tuple(Settings.model_fields)
"""Settings of a search: a sweep has none."""


@with_options(leave_out=UNUSED)
def sweep_command(  # noqa: PLR0913 # one per option
    *,
    by: Annotated[
        str,
        typer.Option(
            help=f"what moves: {' or '.join(SWEEPS)}", metavar="KIND", autocompletion=among(SWEEPS)
        ),
    ] = "threshold",
    max_drop: Annotated[
        str, typer.Option(help="accuracy that may be lost: 0.01 is one point", metavar="NUMBER")
    ] = "0.01",
    values: Annotated[
        str | None,
        typer.Option(
            help="thresholds on |w|, or clusters per layer, joined by commas "
            "(default: a range that fits)",
            metavar="NUMBERS",
        ),
    ] = None,
    biases: Annotated[bool, typer.Option("--biases", help="zero or cluster biases too")] = False,
    mask: Annotated[
        str | None,
        typer.Option(help="cluster what the masks of this run leave", metavar="RUN"),
    ] = None,
    out: Annotated[
        str | None,
        outputs.folder("folder for rows and plots (default: a new one in runs/)"),
    ] = None,
    as_json: Annotated[bool, outputs.ROWS] = False,
    quiet: Annotated[bool, outputs.QUIET] = False,
    **options: Any,
) -> None:
    """Move one number over a range and see where the network breaks.

    By threshold zeroes every weight whose magnitude is below a threshold; by clusters replaces the
    weights of a layer by a few shared values (a k-means codebook). Every point is measured on the
    labels of --test, or of a zoo network's test set; without any, by the agreement with the dense
    network on generated inputs. Prints all points, and the furthest that loses no more than
    --max-drop; the folder has them and a plot.

    Example: gaprune sweep lenet --max-drop 0.02

    Example: gaprune sweep four-layer --by clusters --mask runs/four-layer-0.9
    """
    if by not in SWEEPS:
        raise unknown_name("by", by, SWEEPS)
    stated = {name: value for name, value in options.items() if value not in (None, [])}
    job = make_job({**stated, "sparsity": 0.5})  # a job has one; nothing here uses it
    over = SweepOptions(
        values=() if values is None else numbers(values, "values"),
        max_drop=number(max_drop, "max_drop"),
        biases=biases,
        masks=None if mask is None else load_masks(mask),
    )
    place = free_name(RUNS / f"sweep-{slug(job.target)}") if out is None else Path(out)
    check_new(place)
    target, test = job.load("cpu")  # where its rows have been measured ever since
    with SignalHandler(), Monitor(quiet=quiet) as monitor:
        monitor.phase("sweep", f"{target.name} by {by}")
        held_out = test or generated_validation(target)
        found = sweep(by, target, held_out, over, monitor)
        monitor.stop_bar()
        saved = _save(found, place, monitor)
    if as_json:
        typer.echo(to_json(found.rows, indent=2))
    else:
        _show(found, held_out, over, saved)


def check_new(place: Path) -> None:
    """Refuse a folder that holds something, before anything is computed."""
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise InputError(f"out: {place} is not empty; name a folder that is new or empty")


def _save(found: SweepResult, place: Path, monitor: Monitor) -> list[str]:
    """Write rows and plots; return the names of what is there."""
    names = ["sweep.json"]
    try:
        place.mkdir(parents=True, exist_ok=True)
        (place / names[0]).write_text(to_json(found.rows, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise GapruneError(f"out: cannot write to {place} ({error.strerror})") from error
    try:
        for name in PLOTS:
            found.plot(place / name)
            names.append(name)
    except GapruneError as error:
        monitor.warning(f"no plots: {error}")
    return [str(place / name) for name in names]


def _show(found: SweepResult, held_out: Samples, over: SweepOptions, saved: list[str]) -> None:
    console = stdout()
    names = [name for name, value in found.rows[0].items() if not isinstance(value, dict)]
    shown = table(*(name.replace("_", " ") for name in names))
    for row in found.rows:
        add_row(shown, [_cell(name, row[name]) for name in names], strong=row == found.best)
    console.print(shown)
    lost = f"no more than {points(over.max_drop)[1:]} lost"
    if found.best is None:
        console.print(f"every point loses more than {points(over.max_drop)[1:]}")
    else:
        best = ", ".join(
            f"{name.replace('_', ' ')} {_cell(name, found.best[name])}" for name in names
        )
        console.print(f"furthest with {lost}: {best}", markup=False)
    console.print(f"measured on {held_out.source}", markup=False)
    if found.dense_accuracy is not None:
        console.print(f"dense network: {percent(found.dense_accuracy)}", markup=False)
    console.print(f"saved {', '.join(saved)}", markup=False)


_PARTS = ("sparsity", "accuracy", "agreement")  # shown in percent


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return MISSING
    return (
        percent(value)
        if name in _PARTS
        else f"{value:,.4g}"
        if isinstance(value, float)
        else f"{value:,}"
    )
