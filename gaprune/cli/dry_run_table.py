"""What `--dry-run` prints."""

from __future__ import annotations

from rich.console import Console

from gaprune.cli.console import SHOWN_LAYERS, add_row, table
from gaprune.formatting import duration, percent
from gaprune.runs.dry_run import DryRun


def show_dry_run(found: DryRun, console: Console) -> None:
    """Print layers, budget, calibration inputs, and what the search would take."""
    rows = table("layer", "shape", "weights")
    for name, shape, total in found.layers[:SHOWN_LAYERS]:
        add_row(rows, [name, " x ".join(map(str, shape)), f"{total:,}"])
    if rest := found.layers[SHOWN_LAYERS:]:
        add_row(rows, [f"{len(rest)} more", "", f"{sum(total for *_, total in rest):,}"])
    console.print(rows)
    for line in _facts(found):
        console.print(line, markup=False)


def _facts(found: DryRun) -> list[str]:
    shown = " and ".join(found.calibration)
    why = f", chosen by auto: {found.why}" if found.why else ""
    stays = f"as many of {found.units:,} {found.unit} as trying finds"
    if found.keep is not None:
        part = percent(1 - found.keep / found.units)
        stays = f"{found.keep:,} of {found.units:,} {found.unit} ({part} go)"
    lines = [
        f"can be pruned: {found.total:,} of {found.parameters:,} parameters",
        f"stay: {stays}",
        f"shown: {shown}{why}",
    ]
    for one in found.stages:
        steps = f" of {one.steps} gradient steps" if one.steps else ""
        much = "generations until a limit" if one.generations is None else f"{one.generations} x"
        lines.append(f"{one.name}: {much} {one.children} children{steps}")
    if not found.stages:
        lines.append("one criterion, no search")
    elif found.search_seconds is None:
        each = sum(one.seconds for one in found.stages if one.generations is None)
        lines.append(f"time: about {duration(each)} a generation, as fast as this machine is now")
    else:
        many = "each search (about five)" if found.settings.max_drop is not None else "the search"
        lines.append(f"time of {many}: about {duration(found.search_seconds)}")
    lines.append(
        f"memory: about {found.peak_mb:,.0f} MB a worker. Not foreseen: making calibration inputs, criteria"
    )
    lines.append("nothing was pruned (--dry-run)")
    return lines
