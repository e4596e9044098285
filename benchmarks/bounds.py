"""Bounds on a benchmark's figures, and the table that compares figures with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NO_LIMIT = float("inf")  # as an upper limit: the figure is listed and always passes


@dataclass(frozen=True)
class Bound:
    """A limit on one figure.

    Attributes:
        figure: name of the figure; `a.b` is the entry b of the mapping a.
        limit: the limit.
        at_least: whether `limit` is a lower limit; otherwise it is an upper limit.
        meaning: description in the printed table.
    """

    figure: str
    limit: float
    at_least: bool
    meaning: str

    def holds(self, value: float) -> bool:
        """Return whether a value respects the limit."""
        return value >= self.limit if self.at_least else value <= self.limit


def flatten_figures(figures: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested figures: the entry b of the mapping a is named `a.b`.

    >>> flatten_figures({"overhead": {"mnist-mlp": 1.5}, "cores": 2})
    {'overhead.mnist-mlp': 1.5, 'cores': 2}
    """
    flat: dict[str, Any] = {}
    for name, value in figures.items():
        nested = isinstance(value, Mapping)
        flat |= flatten_figures(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat


def missed_bounds(bounds: Sequence[Bound], figures: Mapping[str, Any]) -> list[Bound]:
    """Return the bounds that do not hold. A figure that was not measured misses no bound."""
    flat = flatten_figures(figures)
    return [
        bound
        for bound in bounds
        if flat.get(bound.figure) is not None and not bound.holds(flat[bound.figure])
    ]


def bounds_table(bounds: Sequence[Bound], figures: Mapping[str, Any]) -> list[str]:
    """Return the Markdown lines of figures with bounds, then one line for each other figure."""
    flat, missed = flatten_figures(figures), missed_bounds(bounds, figures)
    lines = ["| figure | value | bound | meaning |", "|---|---|---|---|"]
    for bound in bounds:
        if bound.figure in flat:
            sign, mark = "≥" if bound.at_least else "≤", " (missed)" if bound in missed else ""
            value = f"{_format(flat.pop(bound.figure))}{mark}"
            limit = "" if bound.limit == NO_LIMIT else f"{sign} {bound.limit:g}"
            lines.append(f"| {bound.figure} | {value} | {limit} | {bound.meaning} |")
    return [*lines, "", *(f"{name}: {_format(value)}" for name, value in flat.items())]


def _format(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(_format, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
