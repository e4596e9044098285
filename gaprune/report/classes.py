"""Who is taken for whom, by the dense network and by the pruned one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gaprune.formatting import number, percent, points

MOST = 20  # classes that are listed where there are too many for a table of pairs
NAMES = {"dense": "Dense network", "pruned": "Pruned network"}


@dataclass(frozen=True)
class Cell:
    """One number of a table of pairs; `shade` in 0 to 1 grows with its part of the row."""

    text: str
    shade: float
    right: bool


@dataclass(frozen=True)
class Pairs:
    """Rows of labels, columns of answers."""

    title: str
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True)
class Losses:
    """The classes that lost most: name, inputs, right before, right after, difference.

    Attributes:
        rows: all classes where they are few, else those that changed, the largest loss first.
        rest: about the others, in words; empty where there are none.
    """

    rows: tuple[tuple[str, str, str, str, str], ...]
    rest: str


def pairs(confusion: Mapping[str, Any] | None) -> list[Pairs]:
    """Return a table for each network; nothing where there are no labels or many classes."""
    if not confusion or not confusion.get("pairs"):
        return []
    return [
        Pairs(NAMES.get(name, name), tuple(_row(label, row) for label, row in enumerate(table)))
        for name, table in confusion["pairs"].items()
    ]


def _row(label: int, counts: Sequence[int]) -> tuple[str, tuple[Cell, ...]]:
    total = max(1, sum(counts))
    cells = []
    for column, count in enumerate(counts):
        part = count / total
        shade = part if column == label else min(1.0, 2 * part**0.5)  # errors are few
        cells.append(Cell(str(count), round(shade, 3), column == label))
    return str(label), tuple(cells)


def losses(confusion: Mapping[str, Any] | None) -> Losses | None:
    """Return the classes of which most is lost, the most first."""
    if not confusion or not confusion.get("of"):
        return None
    of, right = confusion["of"], confusion["right"]
    listed = [
        (before / total, after / total, label, total)
        for label, (total, before, after) in enumerate(
            zip(of, right["dense"], right["pruned"], strict=True)
        )
        if total
    ]
    listed.sort(key=lambda one: one[1] - one[0])
    changed = [one for one in listed if one[0] != one[1]]
    same = len(listed) - len(changed)
    if len(listed) > MOST:
        listed = changed
    rows = tuple(
        (str(label), number(total), percent(before), percent(after), points(after - before))
        for before, after, label, total in listed[:MOST]
    )
    more = len(listed) - len(rows)
    rest = [f"{number(more)} that lost less or gained are left out"] if more else []
    if listed is changed and same:
        rest.append(f"{number(same)} {'is' if same == 1 else 'are'} as before")
    return Losses(rows, "; ".join(rest))
