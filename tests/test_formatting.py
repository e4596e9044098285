"""Figures for people: percentages, differences, numbers, sizes and durations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from gaprune import formatting


@pytest.mark.parametrize(
    ("function", "values", "texts"),
    [
        (formatting.percent, (0, 0.95, 0.98765, 1), ("0.00 %", "95.00 %", "98.77 %", "100.00 %")),
        (formatting.percent, (0.99996, 0.00004), ("99.996 %", "0.004 %")),
        (formatting.percent, (None, math.nan), ("–", "–")),
        (
            formatting.points,
            (0.0125, -0.5),
            ("+1.25 percentage points", "-50.00 percentage points"),
        ),
        (formatting.points, (None,), ("–",)),
        (formatting.number, (1234567, 0.5, 0.0123456), ("1,234,567", "0.5", "0.01235")),
        (formatting.ratio, (38.7, 2.34), ("39×", "2.3×")),
        (formatting.size, (12, 23456, 5e9), ("12 bytes", "23.5 kB", "5 GB")),
        (formatting.duration, (0, 9.94, 9.97, 59.6), ("0.0 s", "9.9 s", "10 s", "1 min 0 s")),
        (formatting.duration, (75, 3599.7, 5025), ("1 min 15 s", "1 h 0 min", "1 h 24 min")),
    ],
)
def test_figures_are_easy_to_read(
    function: Callable[[Any], str], values: tuple[Any, ...], texts: tuple[str, ...]
) -> None:
    """Rounding never shows 100 % of what is less, 60 seconds or 10.0 s."""
    assert tuple(map(function, values)) == texts


def test_ticks_have_no_needless_digits() -> None:
    """Without a number of digits, a percentage has as many as it needs."""
    assert formatting.percent(0.9, digits=None) == "90 %"
    assert formatting.percent(0.9965, digits=None) == "99.65 %"
