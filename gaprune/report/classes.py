"""Confusion matrices of the dense and the pruned network, and accuracy by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gaprune.formatting import number, percent

MAX_CLASSES = 20  # rows of the table of accuracies


@dataclass(frozen=True)
class ConfusionMatrix:
    """A confusion matrix to draw.

    Attributes:
        title: which network.
        rows: for each label, a count and a shade in [0, 1] per predicted class.
    """

    title: str
    rows: tuple[tuple[tuple[int, float], ...], ...]


@dataclass(frozen=True)
class ClassAccuracies:
    """Accuracy by class, the largest loss first.

    Attributes:
        rows: class, inputs, accuracy of the dense and the pruned network, and the difference in
            percentage points; all classes where they are few, else those that changed.
        rest: a sentence about the others; empty where there are none.
    """

    rows: tuple[tuple[str, str, str, str, str], ...]
    rest: str


def confusion_matrices(confusion: Mapping[str, Any] | None) -> list[ConfusionMatrix]:
    """Return a matrix for each network; none where there are no labels or many classes."""
    tables = (confusion or {}).get("pairs") or {}
    return [
        ConfusionMatrix(
            f"{name.capitalize()} network",
            tuple(_shaded(label, row) for label, row in enumerate(table)),
        )
        for name, table in tables.items()
    ]


def _shaded(label: int, counts: Sequence[int]) -> tuple[tuple[int, float], ...]:
    total = max(1, sum(counts))
    # Errors are rare: the root makes them visible beside the diagonal.
    return tuple(
        (
            count,
            round(count / total if column == label else min(1.0, 2 * (count / total) ** 0.5), 3),
        )
        for column, count in enumerate(counts)
    )


def class_accuracies(confusion: Mapping[str, Any] | None) -> ClassAccuracies | None:
    """Return the accuracy of every class, or of those that lost most; None without labels."""
    if not confusion or not confusion.get("of"):
        return None
    correct = confusion["right"]
    classes = [
        (label, total, dense / total, pruned / total)
        for label, (total, dense, pruned) in enumerate(
            zip(confusion["of"], correct["dense"], correct["pruned"], strict=True)
        )
        if total
    ]
    classes.sort(key=lambda row: row[3] - row[2])
    rest = []
    if len(classes) > MAX_CLASSES:
        changed = [row for row in classes if row[2] != row[3]]
        if more := changed[MAX_CLASSES:]:
            rest.append(f"{number(len(more))} more classes changed")
        if same := len(classes) - len(changed):
            rest.append(f"{number(same)} did not change")
        classes = changed[:MAX_CLASSES]
    rows = tuple(
        (
            str(label),
            number(total),
            percent(dense),
            percent(pruned),
            f"{100 * (pruned - dense):+.2f}",
        )
        for label, total, dense, pruned in classes
    )
    return ClassAccuracies(rows, "; ".join(rest))
