"""Rows as tables of text: one line a method, one column a sparsity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gaprune.comparison.rows import MethodRequirements, MethodSummary, SeedSummary
from gaprune.formatting import MISSING, percent

BESIDE = 5e-4  # a budget that is missed by less goes without saying
_DATA = {"none": "weights", "procedural": "calibration", "labelled": "labels"}


def cell_text(cell: SeedSummary | None) -> str:
    """Return the median in percent, and half the range over seeds where there are several."""
    if cell is None:
        return MISSING
    spread = f" ±{50 * (cell.high - cell.low):.2f}" if cell.seeds > 1 else ""
    return f"{100 * cell.score:.2f}{spread}"


def needs_text(needs: MethodRequirements) -> str:
    """Return what a method was given, in a few words: `calibration, gradients`.

    Labels stand for the training set, training stands for gradients as well.
    """
    data = _DATA.get(needs.data, needs.data)
    effort = "training" if needs.training else "gradients" if needs.gradients else None
    if effort is None:
        return "weights only" if needs.data == "none" else data
    return f"{data}, {effort}"


def effort_text(line: MethodSummary) -> str:
    """Return what the highest sparsity took: epochs, or evaluated masks, or one shot."""
    if line.epochs:
        return f"{line.epochs:g} epochs"
    return f"{line.evaluations:,.0f} masks" if line.evaluations else "one shot"


def columns(sparsities: Iterable[float]) -> list[str]:
    """Return the headings."""
    return ["method", "needs", *(f"{s:g}" for s in sparsities), "effort", "seconds"]


def line_cells(line: MethodSummary, sparsities: Sequence[float]) -> list[str]:
    """Return the cells of one line, under `columns`."""
    found = [cell_text(line.cells.get(sparsity)) for sparsity in sparsities]
    if not line.cells:
        return [line.method, needs_text(line.needs), *found, MISSING, MISSING]
    seconds = f"{line.seconds:,.0f}" if line.seconds >= 10 else f"{line.seconds:.1f}"
    return [line.method, needs_text(line.needs), *found, effort_text(line), seconds]


def notes(lines: Iterable[MethodSummary]) -> list[str]:
    """Return what a reader of the table must know: other budgets, and why figures are missing."""
    lines = list(lines)
    removed: dict[str, list[str]] = {}
    for line in lines:
        beside = [
            f"{percent(cell.actual, 1)} at {sparsity:g}"
            for sparsity, cell in line.cells.items()
            if abs(cell.actual - sparsity) > BESIDE
        ]
        if beside:
            removed.setdefault(", ".join(beside), []).append(line.method)
    reasons: dict[str, list[str]] = {}
    for line in lines:
        for reason in filter(None, (line.error, line.note)):
            reasons.setdefault(reason, []).append(line.method)
    return [
        *(f"{_removing(methods)} {beside}" for beside, methods in removed.items()),
        *(f"{', '.join(methods)}: {reason}" for reason, methods in reasons.items()),
    ]


def markdown(lines: Sequence[MethodSummary], dense: float | None, caption: str) -> str:
    """Return the table in Markdown, with its notes below."""
    sparsities = sorted({sparsity for line in lines for sparsity in line.cells})
    head = columns(sparsities)
    rows = [line_cells(line, sparsities) for line in lines]
    if dense is not None:
        full = [f"{100 * dense:.2f}"] * len(sparsities)
        rows.insert(0, ["*dense network*", "", *full, "", ""])
    text = [caption, "", _row(head), _row("---" for _ in head), *map(_row, rows)]
    text += [f"\n{note}" for note in notes(lines)]
    return "\n".join(text) + "\n"


def _removing(methods: Sequence[str]) -> str:
    verb = "removes" if len(methods) == 1 else "remove"
    return f"{', '.join(methods)} {verb}"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
