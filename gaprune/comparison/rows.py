"""Rows of a comparison, their summary over seeds, and both as a table of text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from gaprune.formatting import MISSING, percent

RowKey = tuple[str, float, int]
"""Method, sparsity, seed: no two rows of a comparison share them."""

TOLERANCE = 5e-4  # a sparsity that differs from the requested one by less needs no note
_DATA_NAMES = {"none": "weights", "procedural": "calibration", "labelled": "labels"}


@dataclass(frozen=True)
class MethodRequirements:
    """What a method needs.

    Attributes:
        data: a level of `gaprune.calibration.provenance.DATA_LEVELS`: `none` uses the weights
            alone, `labelled` the training set.
    """

    data: str = "none"
    labels: bool = False  # whether it uses labels of the training set
    gradients: bool = False  # whether it differentiates the network
    training: bool = False  # whether it trains weights
    changes: str = ""  # what it changes in closed form besides: `weights`, `statistics` or none


@dataclass(frozen=True)
class Row:
    """One method at one sparsity with one seed.

    Attributes:
        actual: the fraction of weights that was removed; None if the method failed.
        path: the sparsities of the run, if each is reached from the one before.
        steps: sparsity, accuracy, agreement and epochs after every step up to this row, for methods
            that train.
    """

    target: str  # name of the pruned network
    sparsity: float  # requested fraction of prunable weights to remove
    method: str  # its name
    seed: int  # of every random choice
    needs: MethodRequirements  # what the method needs
    accuracy: float | None = None  # on the test labels; None without labels
    agreement: float | None = None  # with the dense network on the same inputs, in [0, 1]
    evaluations: int = 0  # candidates scored by a search; a gradient step on scores counts as one
    epochs: float = 0.0  # of training, from the dense network to this row
    seconds: float = 0.0  # from the dense network to this row, without measuring it
    actual: float | None = None
    dense_accuracy: float | None = None  # of the dense network on the test labels
    path: tuple[float, ...] = ()
    steps: tuple[Mapping[str, float | None], ...] = ()
    code: str = ""  # hash of the user's criterion file, or empty
    error: str | None = None  # why the method failed, or None
    note: str | None = None  # why the method doesn't apply under the pattern, or None

    @property
    def key(self) -> RowKey:
        """What identifies the row in its comparison."""
        return self.method, self.sparsity, self.seed

    @property
    def score(self) -> float | None:
        """Accuracy, or agreement without labels; None if the method failed."""
        return self.agreement if self.accuracy is None else self.accuracy

    def record(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class SeedSummary:
    """The rows of one method at one sparsity: median, smallest and largest score over `seeds` rows.

    `actual` is the median fraction of weights that was removed.
    """

    score: float
    low: float
    high: float
    seeds: int
    actual: float


@dataclass(frozen=True)
class MethodSummary:
    """One method over all sparsities; the costs are medians at the highest one with a score.

    `cells` maps a sparsity to the summary over seeds; a sparsity without any score is missing.
    """

    method: str
    needs: MethodRequirements
    cells: Mapping[float, SeedSummary]
    evaluations: float
    epochs: float
    seconds: float
    error: str | None
    note: str | None = None


def summarise(rows: Iterable[Row]) -> list[MethodSummary]:
    """Summarise every method over its seeds.

    Methods that change nothing they keep come first, then those that do so in closed form, then
    training; in each part those that reach the highest sparsity, then those with the best score.
    """
    by_method: dict[str, list[Row]] = {}
    for row in rows:
        by_method.setdefault(row.method, []).append(row)
    summaries = [_summary(method, of_method) for method, of_method in by_method.items()]

    def rank(summary: MethodSummary) -> tuple[bool, bool, float, float]:
        last = max(summary.cells, default=0.0)
        score = summary.cells[last].score if summary.cells else 0.0
        return summary.needs.training, bool(summary.needs.changes), -last, -score

    return sorted(summaries, key=rank)  # stable: equal methods stay in order


def _summary(method: str, rows: Sequence[Row]) -> MethodSummary:
    scores: dict[float, list[tuple[float, float]]] = {}
    for row in rows:
        if row.score is not None:  # failed rows count as missing, not as zero
            scores.setdefault(row.sparsity, []).append((row.score, row.actual or 0.0))
    cells = {}
    for sparsity, pairs in sorted(scores.items()):
        values = [score for score, _ in pairs]
        actual = median(removed for _, removed in pairs)
        cells[sparsity] = SeedSummary(median(values), min(values), max(values), len(pairs), actual)
    # the highest sparsity costs most: its effort stands for the method
    last = [row for row in rows if row.sparsity == max(cells, default=None)] or rows
    return MethodSummary(
        method=method,
        needs=rows[0].needs,
        cells=cells,
        evaluations=median(row.evaluations for row in last),
        epochs=median(row.epochs for row in last),
        seconds=median(row.seconds for row in last),
        error=next((row.error for row in rows if row.error), None),
        note=next((row.note for row in rows if row.note), None),
    )


def needs_text(needs: MethodRequirements) -> str:
    """Name what a method needs: `calibration, gradients`; `training` includes gradients."""
    if needs.changes:
        return f"{needs_text(replace(needs, changes=''))}; changes {needs.changes}"
    data = _DATA_NAMES.get(needs.data, needs.data)
    effort = "training" if needs.training else "gradients" if needs.gradients else None
    if effort is None:
        return "weights only" if needs.data == "none" else data
    return f"{data}, {effort}"


def effort_text(summary: MethodSummary) -> str:
    """Name the cost of the highest sparsity: epochs, evaluated masks, or `one shot`."""
    if summary.epochs:
        return f"{summary.epochs:g} epochs"
    return f"{summary.evaluations:,.0f} masks" if summary.evaluations else "one shot"


def table_header(sparsities: Iterable[float]) -> list[str]:
    """Return the column headings of the table."""
    return ["method", "needs", *(f"{s:g}" for s in sparsities), "effort", "seconds"]


def table_cells(summary: MethodSummary, sparsities: Sequence[float]) -> list[str]:
    """Return the cells of one method under `table_header`.

    Scores are medians in percent, with half the range over seeds if there are several.
    """
    scores = []
    for sparsity in sparsities:
        cell = summary.cells.get(sparsity)
        spread = f" ±{50 * (cell.high - cell.low):.2f}" if cell and cell.seeds > 1 else ""
        scores.append(f"{100 * cell.score:.2f}{spread}" if cell else MISSING)
    effort, seconds = MISSING, MISSING
    if summary.cells:
        effort = effort_text(summary)
        seconds = f"{summary.seconds:,.0f}" if summary.seconds >= 10 else f"{summary.seconds:.1f}"
    return [summary.method, needs_text(summary.needs), *scores, effort, seconds]


def notes(summaries: Sequence[MethodSummary]) -> list[str]:
    """Return the notes below the table: differing sparsities, and why scores are missing."""
    removed: dict[str, list[str]] = {}
    reasons: dict[str, list[str]] = {}
    for summary in summaries:
        differing = [  # structured methods may remove more than requested
            f"{percent(cell.actual, 1)} at {sparsity:g}"
            for sparsity, cell in summary.cells.items()
            if abs(cell.actual - sparsity) > TOLERANCE
        ]
        if differing:
            removed.setdefault(", ".join(differing), []).append(summary.method)
        for reason in filter(None, (summary.error, summary.note)):
            reasons.setdefault(reason, []).append(summary.method)
    return [
        *(f"{', '.join(names)}: removed {amounts}" for amounts, names in removed.items()),
        *(f"{', '.join(names)}: {reason}" for reason, names in reasons.items()),
    ]


def markdown(summaries: Sequence[MethodSummary], dense: float | None, caption: str) -> str:
    """Return the table in Markdown, with its caption above and its notes below."""
    sparsities = sorted({sparsity for summary in summaries for sparsity in summary.cells})
    header = table_header(sparsities)
    rows = [table_cells(summary, sparsities) for summary in summaries]
    if dense is not None:
        full = [f"{100 * dense:.2f}"] * len(sparsities)
        rows.insert(0, ["*dense network*", "", *full, "", ""])
    # the second row separates the header in Markdown
    table = [header, ["---"] * len(header), *rows]
    text = [caption, "", *(f"| {' | '.join(cells)} |" for cells in table)]
    text += [f"\n{note}" for note in notes(summaries)]
    return "\n".join(text) + "\n"
