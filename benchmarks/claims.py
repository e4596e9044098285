"""What a benchmark's figures must be, and the table that says whether they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NO_BOUND = float("inf")  # at most that


@dataclass(frozen=True)
class Claim:
    """What a figure must be.

    Attributes:
        figure: which; `a.b` is the entry b of the figure a.
        bound: at least, or at most.
        least: which of both.
        meaning: for people.
    """

    figure: str
    bound: float
    least: bool
    meaning: str

    def holds(self, value: float) -> bool:
        """Tell whether a value is good enough."""
        return value >= self.bound if self.least else value <= self.bound


def flat(figures: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return figures without nesting: the entry b of the figure a is named `a.b`.

    >>> flat({"overhead": {"mnist-mlp": 1.5}, "cores": 2})
    {'overhead.mnist-mlp': 1.5, 'cores': 2}
    """
    found: dict[str, Any] = {}
    for name, value in figures.items():
        inner = isinstance(value, Mapping)
        found |= flat(value, f"{before}{name}.") if inner else {before + name: value}
    return found


def missed(claims: Sequence[Claim], figures: Mapping[str, Any]) -> list[Claim]:
    """Return the claims that do not hold; what was not measured misses nothing."""
    known = flat(figures)
    return [
        claim
        for claim in claims
        if known.get(claim.figure) is not None and not claim.holds(known[claim.figure])
    ]


def table(claims: Sequence[Claim], figures: Mapping[str, Any]) -> list[str]:
    """Return the lines of the table in Markdown, and whatever else was measured below it."""
    known, short = flat(figures), missed(claims, figures)
    lines = ["| figure | value | bound | meaning |", "|---|---|---|---|"]
    for claim in claims:
        if claim.figure in known:
            sign, mark = "≥" if claim.least else "≤", " (missed)" if claim in short else ""
            value = f"{_short(known.pop(claim.figure))}{mark}"
            bound = "" if claim.bound == NO_BOUND else f"{sign} {claim.bound:g}"
            lines.append(f"| {claim.figure} | {value} | {bound} | {claim.meaning} |")
    return [*lines, "", *(f"{name}: {_short(value)}" for name, value in known.items())]


def _short(value: object) -> str:
    if isinstance(value, list):
        return " ".join(_short(one) for one in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
