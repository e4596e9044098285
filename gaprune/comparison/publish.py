"""What a comparison found, and the files that show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gaprune.comparison.comparison_report import page_of
from gaprune.comparison.plots.comparison_plot import plot_comparison
from gaprune.comparison.rows import MethodSummary, Row, summarise
from gaprune.comparison.store import CSV, LIST, PLOTS, REPORT, TABLE, Store, as_csv
from gaprune.comparison.tables import markdown
from gaprune.errors import GapruneError
from gaprune.io.serialization import to_json
from gaprune.pattern_names import UNSTRUCTURED, unit_name


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Attributes:
        target: what was pruned.
        rows: in the order in which they were asked for.
        dense_accuracy: of the dense network on the held-out labels, or None.
        measured_on: the held-out inputs, in words.
        pattern: what is removed together.
    """

    target: str
    rows: tuple[Row, ...]
    dense_accuracy: float | None
    measured_on: str
    pattern: str = UNSTRUCTURED

    @property
    def removed(self) -> str:
        """What the sparsities are parts of, in words: weights, blocks or channels."""
        return unit_name(self.pattern)

    @property
    def lines(self) -> list[MethodSummary]:
        """One line a method: medians and spread over seeds."""
        return summarise(self.rows)

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


def publish(found: Comparison, store: Store, warn: Callable[[str], None]) -> None:
    """Write the list, the table, the report and the plots into the folder of the rows.

    Args:
        found: what came out.
        store: the open folder.
        warn: told where the plots cannot be made; everything else is written all the same.

    Raises:
        GapruneError: the folder cannot be written.
    """
    records = [row.record() for row in found.rows]
    store.write(LIST, to_json(records, indent=2) + "\n")
    store.write(CSV, as_csv(found.rows))
    store.write(TABLE, markdown(found.lines, found.dense_accuracy, found.caption))
    store.write(REPORT, page_of(found.rows, found.caption, store.folder, found.removed))
    try:
        for name in PLOTS:
            plot_comparison(
                records, store.folder / name, dense=found.dense_accuracy, title=found.target
            )
    except GapruneError as error:
        warn(f"no plots: {error}")
