"""What a comparison returns, the files that show it, and the report of a folder on the disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gaprune.comparison.methods.method_registry import find_methods
from gaprune.comparison.plots.comparison_plot import plot_comparison
from gaprune.comparison.rows import (
    MethodSummary,
    Row,
    effort_text,
    markdown,
    needs_text,
    notes,
    summarise,
)
from gaprune.comparison.store import (
    CONFIG,
    CSV,
    LIST,
    PLOTS,
    REPORT,
    ROWS,
    TABLE,
    Store,
    as_csv,
    flat_records,
    read_rows,
)
from gaprune.errors import GapruneError, InputError
from gaprune.io.atomic import write_file, writing
from gaprune.io.bounded_reading import read_object
from gaprune.io.manifest import IDENTITY, check_recorded, check_sealed
from gaprune.io.run_files import read_config
from gaprune.io.serialization import to_json
from gaprune.pattern_names import UNSTRUCTURED, unit_name
from gaprune.report import write_report
from gaprune.report.comparison_page import (
    ComparisonPage,
    MethodScores,
    SparsityScore,
    comparison_page,
)
from gaprune.report.next_steps import enter, relative_path, repeat

_FACTS = (
    *("target", "weights_sha256", "train", "test", "preset", "scope", "objective"),
    *("calibration", "schedule", "gaprune", "torch"),
)


@dataclass(frozen=True, repr=False)
class Comparison:
    """The result of a comparison."""

    target: str  # name of the pruned network
    rows: tuple[Row, ...]  # in the requested order
    dense_accuracy: float | None  # of the dense network on the test labels, or None
    measured_on: str  # the held-out inputs, in words
    pattern: str = UNSTRUCTURED  # what is removed together

    @property
    def removed(self) -> str:
        """What the sparsities count, in words: weights, blocks or channels."""
        return unit_name(self.pattern)

    @property
    def summaries(self) -> list[MethodSummary]:
        """One summary per method: medians and spread over seeds."""
        return summarise(self.rows)

    def __repr__(self) -> str:
        return markdown(self.summaries, self.dense_accuracy, self.caption)

    def to_dataframe(self) -> Any:  # noqa: ANN401 - pandas is not needed for anything else
        """Return the rows as a `pandas.DataFrame`, with the columns of `rows.csv`.

        Raises:
            GapruneError: pandas is not installed.
        """
        if find_spec("pandas") is None:
            raise GapruneError("to_dataframe: needs pandas; pip install pandas")
        return import_module("pandas").DataFrame(flat_records(self.rows))

    @property
    def origin(self) -> str:
        """The version that made the figures, and the seeds."""
        seeds = sorted({row.seed for row in self.rows})
        listed = ", ".join(map(str, seeds))
        version = metadata.version("gaprune")
        return f"gaprune {version}, seed{'s' if len(seeds) > 1 else ''} {listed}"

    @property
    def caption(self) -> str:
        """What the figures are, in a sentence."""
        measure = "Agreement with the dense network" if self.dense_accuracy is None else "Accuracy"
        seeds = len({row.seed for row in self.rows})
        spread = f", median ± half the range of {seeds} seeds" if seeds > 1 else ""
        return (
            f"{self.target}: {measure} in % on {self.measured_on}{spread}, by the fraction of "
            f"prunable {self.removed} removed."
        )


def publish(comparison: Comparison, store: Store, warn: Callable[[str], None]) -> None:
    """Write the list, the table, the report and the plots into the folder of the rows.

    `warn` is called if the plots cannot be made; all other files are written.
    """
    summaries, dense, caption = comparison.summaries, comparison.dense_accuracy, comparison.caption
    store.write(LIST, to_json([row.record() for row in comparison.rows], indent=2) + "\n")
    store.write(CSV, as_csv(comparison.rows))
    store.write(TABLE, markdown(summaries, dense, caption))
    store.list_files()
    store.write(REPORT, _page(comparison.rows, caption, store.folder, comparison.removed))
    try:
        for name in PLOTS:
            plot_comparison(
                summaries, store.folder / name, dense, comparison.target, comparison.origin
            )
    except GapruneError as error:  # matplotlib is optional
        warn(f"no plots: {error}")


def make_report(folder: str | Path) -> Path:
    """Write `report.html` of a finished run or of a comparison again, from its other files.

    Returns:
        The absolute path of the page.

    Raises:
        InputError: the folder holds neither.
        GapruneError: it cannot be written, or a file of the run is damaged.
    """
    path = Path(folder).expanduser().resolve()
    if not (path / ROWS).is_file():
        return write_report(folder)
    for name in (CONFIG, TABLE):
        check_recorded(path / name)
    config = read_config(path / CONFIG) if (path / CONFIG).is_file() else {}
    rows = read_rows(path)
    for name, attribute in (("sparsity", "sparsity"), ("seeds", "seed")):
        requested = config.get(name)
        if isinstance(requested, list):  # earlier commands may have left other rows
            rows = [row for row in rows if getattr(row, attribute) in requested]
    if not rows:
        raise InputError(f"comparison: {folder} holds no rows yet; gaprune compare makes them")
    pattern = str(config.get("pattern", UNSTRUCTURED))
    caption = _text(path / TABLE).partition("\n")[0] or f"{rows[0].target}, in %."
    caption += _missing_rows(rows, config, pattern)
    with writing(folder, GapruneError):
        write_file(path / REPORT, _page(rows, caption, path, unit_name(pattern)))
    return path / REPORT


def _page(rows: Sequence[Row], caption: str, folder: Path, removed: str) -> str:
    # all rows share it
    dense = next((row.dense_accuracy for row in rows if row.dense_accuracy is not None), None)
    summaries = summarise(rows)
    labelled = any(row.accuracy is not None for row in rows)
    return comparison_page(
        ComparisonPage(
            target=rows[0].target,
            measure="accuracy" if labelled else "agreement with the dense network",
            caption=caption,
            dense=dense,
            methods=[_method_scores(summary) for summary in summaries],
            notes=notes(summaries),
            config=_text(folder / CONFIG),
            facts=_facts(folder),
            steps=[enter(Path.cwd()), repeat("compare", relative_path(folder, Path.cwd()))],
            removed=removed,
        )
    )


def _method_scores(summary: MethodSummary) -> MethodScores:
    return MethodScores(
        name=summary.method,
        needs=needs_text(summary.needs),
        trains=summary.needs.training,
        corrects=bool(summary.needs.changes),
        scores={
            sparsity: SparsityScore(
                cell.score, cell.low, cell.high, cell.seeds, cell.actual or sparsity
            )
            for sparsity, cell in summary.cells.items()
        },
        effort=effort_text(summary) if summary.cells else "",
        seconds=summary.seconds,
    )


def _missing_rows(rows: Sequence[Row], config: Mapping[str, Any], pattern: str) -> str:
    """Name the rows that a stopped comparison lacks, as a sentence; empty if none."""
    names, sparsities, seeds = (config.get(key) for key in ("methods", "sparsity", "seeds"))
    if not (isinstance(names, list) and isinstance(sparsities, list) and isinstance(seeds, list)):
        return ""
    try:
        chosen = find_methods(names, pattern)
    except GapruneError:  # the user's criterion file is gone
        return ""
    # rows with an error are present, too
    present = {(row.method, row.seed, row.sparsity) for row in rows}
    missing: dict[str, int] = {}
    for method in chosen:
        requested = {
            (method.name, seed, sparsity)
            for seed in (seeds if method.seeded else seeds[:1])
            for sparsity in sparsities
        }
        if count := len(requested - present):
            missing[method.name] = count
    if not missing:
        return ""
    counts = ", ".join(f"{name} ({count})" for name, count in missing.items())
    total = sum(missing.values())
    return f" It was stopped: {total} rows are missing: {counts}. The same command goes on."


def _facts(folder: Path) -> list[tuple[str, str]]:
    try:
        identity = check_sealed(read_object(folder / IDENTITY))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise InputError(f"comparison: {folder / IDENTITY} is damaged ({error})") from error
    facts = [(name, identity[name]) for name in _FACTS if identity.get(name)]
    return [(name, ", ".join(map(str, v)) if isinstance(v, list) else str(v)) for name, v in facts]


def _text(path: Path) -> str:
    """Return the text of a file; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
