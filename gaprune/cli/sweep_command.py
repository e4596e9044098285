"""`gaprune sweep`: thresholds or codebook sizes from mild to harsh, and the strongest usable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gaprune.calibration.samples import Samples
from gaprune.cli import common_options as common
from gaprune.cli.console import Monitor, add_row, stdout, table
from gaprune.cli.options import with_options
from gaprune.cli.prune_command import RUNS, slug
from gaprune.cli.stop_signals import SignalHandler
from gaprune.comparison.sweeps import (
    SWEEPS,
    SweepOptions,
    SweepResult,
    generated_validation,
    sweep_target,
)
from gaprune.config import Settings
from gaprune.errors import GapruneError, InputError, unknown_name
from gaprune.formatting import MISSING, percent, points
from gaprune.io.serialization import to_json
from gaprune.runs.directory import load_masks
from gaprune.runs.job import make_job
from gaprune.runs.open_directory import free_name
from gaprune.runs.option_keys import numbers, single_number

PLOTS = ("sweep.svg", "sweep.png")
FRACTIONS = ("sparsity", "accuracy", "agreement")  # columns that are printed in percent


@with_options(leave_out=tuple(Settings.model_fields))  # a sweep does not search
def sweep_command(  # noqa: PLR0913 # one per option
    *,
    by: Annotated[
        str,
        typer.Option(
            help=f"what varies: {' or '.join(SWEEPS)}",
            metavar="KIND",
            autocompletion=common.completion(SWEEPS),
        ),
    ] = "threshold",
    max_drop: Annotated[
        str,
        typer.Option(
            help="largest drop in accuracy: 0.01 is one percentage point", metavar="NUMBER"
        ),
    ] = "0.01",
    values: Annotated[
        str | None,
        common.value(
            "thresholds on |w|, or clusters per layer, joined by commas "
            "(default: chosen by the network)",
            "NUMBERS",
            panel=None,
        ),
    ] = None,
    biases: Annotated[bool, common.switch("--biases", "include biases", None)] = False,
    mask: Annotated[
        str | None,
        common.value("cluster the weights kept by the masks of this run", "RUN", panel=None),
    ] = None,
    out: Annotated[
        str | None,
        common.value("folder for rows and plots (default: a new one in runs/)", "DIR"),
    ] = None,
    as_json: Annotated[bool, common.ROWS] = False,
    quiet: Annotated[bool, common.QUIET] = False,
    **options: Any,
) -> None:
    """Vary one number over a range and see where the network breaks.

    By threshold: removes every weight whose magnitude is below a threshold. By clusters: replaces
    the weights of a layer by a few shared values (a k-means codebook). Every point is measured on
    the labels of --test, or the test set of a bundled network; without labels, by agreement with
    the dense network on generated inputs. Prints all points, and the strongest one whose drop is
    at most --max-drop; the folder holds them and a plot.

    Example: gaprune sweep lenet --max-drop 0.02

    Example: gaprune sweep four-layer --by clusters --mask runs/four-layer-0.9
    """
    if by not in SWEEPS:
        raise unknown_name("by", by, SWEEPS)
    job = make_job({**common.stated(options), "sparsity": 0.5})  # required, but not used here
    sweep_options = SweepOptions(
        values=() if values is None else numbers(values, "values"),
        max_drop=single_number(max_drop, "max_drop"),
        biases=biases,
        masks=None if mask is None else load_masks(mask),
    )
    folder = free_name(RUNS / f"sweep-{slug(job.target)}") if out is None else Path(out)
    # refuse before anything is computed
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"out: {folder} is not empty; name a folder that is new or empty")
    target, test = job.load("cpu")  # sweeps are always on the CPU: figures stay comparable
    with SignalHandler(), Monitor(quiet=quiet) as monitor:
        monitor.phase("sweep", f"{target.name} by {by}")
        held_out = test or generated_validation(target)
        result = sweep_target(by, target, held_out, sweep_options, monitor)
        monitor.stop_bar()
        files = _save(result, folder, monitor)
    if as_json:
        typer.echo(to_json(result.rows, indent=2))
    else:
        _show(result, held_out, sweep_options.max_drop, files)


def _save(result: SweepResult, folder: Path, monitor: Monitor) -> list[str]:
    """Write rows and plots; return the paths of the files."""
    rows = folder / "sweep.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        rows.write_text(to_json(result.rows, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise GapruneError(f"out: cannot write to {folder} ({error.strerror})") from error
    files = [str(rows)]
    try:
        # plots need an extra: rows are saved first, and are enough
        for name in PLOTS:
            result.plot(folder / name)
            files.append(str(folder / name))
    except GapruneError as error:
        monitor.warning(f"no plots: {error}")
    return files


def _show(result: SweepResult, held_out: Samples, max_drop: float, files: list[str]) -> None:
    console = stdout()
    names = [name for name, value in result.rows[0].items() if not isinstance(value, dict)]
    heads = [name.replace("_", " ") for name in names]
    rows = table(*heads)
    for row in result.rows:
        add_row(rows, [_cell(name, row[name]) for name in names], strong=row == result.best)
    console.print(rows)
    limit = points(max_drop).lstrip("+")
    if result.best is None:
        console.print(f"every point drops more than {limit}")
    else:
        cells = [_cell(name, result.best[name]) for name in names]
        best = ", ".join(f"{head} {cell}" for head, cell in zip(heads, cells, strict=True))
        console.print(f"strongest with a drop of at most {limit}: {best}", markup=False)
    console.print(f"measured on {held_out.source}", markup=False)
    if result.dense_accuracy is not None:
        console.print(f"dense network: {percent(result.dense_accuracy)}", markup=False)
    console.print(f"saved {', '.join(files)}", markup=False)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return MISSING
    if name in FRACTIONS:
        return percent(value)
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
