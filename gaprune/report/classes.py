"""Confusion matrices of the dense and the pruned network, and accuracy by class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gaprune.formatting import number, percent, points

MAX_CLASSES = 20  # rows of the table of accuracies


def confusion_matrices(
    confusion: Mapping[str, Any] | None,
) -> list[tuple[str, list[list[tuple[int, float]]]]]:
    """Return title and rows of a matrix per network; none without labels or with many classes.

    A cell is a count and a shade in [0, 1].
    """
    tables = (confusion or {}).get("matrices") or {}
    matrices = []
    for name, table in tables.items():
        rows = []
        for label, counts in enumerate(table):
            fractions = [count / max(1, sum(counts)) for count in counts]
            # Errors are rare: the root makes them visible beside the diagonal.
            shades = [min(1.0, 2 * fraction**0.5) for fraction in fractions]
            shades[label] = fractions[label]
            rows.append([(count, round(s, 3)) for count, s in zip(counts, shades, strict=True)])
        matrices.append((f"{name.capitalize()} network", rows))
    return matrices


def class_accuracies(
    confusion: Mapping[str, Any] | None,
) -> tuple[list[tuple[str, str, str, str, str]], str] | None:
    """Return the table of accuracies by class, the largest loss first; None without labels.

    Its rows are class, inputs, accuracy of the dense and the pruned network, and the difference in
    percentage points: of all classes where they are few, else of those that changed. A sentence,
    which may be empty, is about the other classes.
    """
    if not confusion or not confusion.get("totals"):
        return None
    correct = confusion["correct"]
    classes = [
        (label, total, dense / total, pruned / total)
        for label, (total, dense, pruned) in enumerate(
            zip(confusion["totals"], correct["dense"], correct["pruned"], strict=True)
        )
        if total
    ]
    classes.sort(key=lambda row: row[3] - row[2])
    rest = []
    # A table of 1,000 classes hides the few that matter, so unchanged classes are only counted.
    if len(classes) > MAX_CLASSES:
        changed = [row for row in classes if row[2] != row[3]]
        if more := changed[MAX_CLASSES:]:
            rest.append(f"{number(len(more))} more classes changed")
        if same := len(classes) - len(changed):
            rest.append(f"{number(same)} did not change")
        classes = changed[:MAX_CLASSES]
    rows = [
        (str(label), number(total), percent(dense), percent(pruned), _change(pruned - dense))
        for label, total, dense, pruned in classes
    ]
    return rows, "; ".join(rest)


def _change(difference: float) -> str:
    return points(difference).partition(" ")[0]  # the head of the table has the unit
