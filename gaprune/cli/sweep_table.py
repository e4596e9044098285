"""What a sweep prints and saves."""

from __future__ import annotations

from pathlib import Path

from gaprune.calibration.samples import Samples
from gaprune.cli.console import Monitor, add_row, stdout, table
from gaprune.comparison.sweeps import SweepResult
from gaprune.errors import GapruneError
from gaprune.formatting import MISSING, percent, points
from gaprune.io.serialization import to_json

PLOTS = ("sweep.svg", "sweep.png")
FRACTIONS = ("sparsity", "accuracy", "agreement")  # columns that are printed in percent


def save_sweep(result: SweepResult, folder: Path, monitor: Monitor) -> list[str]:
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


def show_sweep(result: SweepResult, held_out: Samples, max_drop: float, files: list[str]) -> None:
    """Print all points, the strongest usable one, and where they are saved."""
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
