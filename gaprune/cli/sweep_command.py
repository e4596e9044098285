"""`gaprune sweep`: thresholds or codebook sizes from mild to harsh, and the strongest usable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gaprune.choices import SWEEPS, listed
from gaprune.cli import common_options as common
from gaprune.cli.options import with_options
from gaprune.config import Settings
from gaprune.errors import InputError, unknown_name
from gaprune.runs.option_keys import numbers, single_number


@with_options(leave_out=tuple(Settings.model_fields))  # a sweep does not search
def sweep_command(  # noqa: PLR0913 # one per option
    *,
    by: Annotated[
        str,
        typer.Option(
            help="what varies",
            metavar=listed(SWEEPS),
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
    from gaprune.cli.console import Monitor
    from gaprune.cli.stop_signals import SignalHandler
    from gaprune.cli.sweep_table import save_sweep, show_sweep
    from gaprune.comparison.sweeps import SweepOptions, generated_validation, sweep_target
    from gaprune.io.serialization import to_json
    from gaprune.runs.directory import load_masks
    from gaprune.runs.job import make_job
    from gaprune.runs.open_directory import free_name

    if by not in SWEEPS:
        raise unknown_name("by", by, SWEEPS)
    job = make_job({**common.stated(options), "sparsity": 0.5})  # required, but not used here
    sweep_options = SweepOptions(
        values=() if values is None else numbers(values, "values"),
        max_drop=single_number(max_drop, "max_drop"),
        biases=biases,
        masks=None if mask is None else load_masks(mask),
    )
    folder = (
        free_name(common.RUNS / f"sweep-{common.slug(job.target)}") if out is None else Path(out)
    )
    # refuse before anything is computed
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"out: {folder} is not empty; name a folder that is new or empty")
    target, test = job.load("cpu")  # sweeps are always on the CPU: figures stay comparable
    with SignalHandler(), Monitor(quiet=quiet) as monitor:
        monitor.phase("sweep", f"{target.name} by {by}")
        held_out = test or generated_validation(target)
        result = sweep_target(by, target, held_out, sweep_options, monitor)
        monitor.stop_bar()
        files = save_sweep(result, folder, monitor)
    if as_json:
        typer.echo(to_json(result.rows, indent=2))
    else:
        show_sweep(result, held_out, sweep_options.max_drop, files)
