"""Figures as people read them: percentages, differences, counts, sizes and durations."""

from __future__ import annotations

import math

MISSING = "–"
_SIZES = ("bytes", "kB", "MB", "GB", "TB")


def percent(value: float | None, digits: int | None = 2) -> str:
    """Format a fraction as a percentage: 0.95342 → `95.34 %`; None or not finite: a dash.

    `digits` after the point; None: as many as needed, so 0.9 → `90 %`.
    """
    if value is None or not math.isfinite(value):
        return MISSING
    if digits is None:
        return f"{100 * value:.6g} %"
    # an agreement of 0.99996 is not perfect: more digits where a value would round to 0 or 100 %
    while digits < 4 and value not in (0, 1) and round(value, 2 + digits) in (0, 1):
        digits += 1
    return f"{100 * value:.{digits}f} %"


def removed_weights(removed: int, prunable: int, parameters: int | None = None) -> str:
    """Format how many weights are gone: `50.00 % of 240 prunable weights; 47.62 % of all 252`."""
    text = f"{percent(removed / max(1, prunable))} of {prunable:,} prunable weights"
    if parameters is None:
        return text
    return f"{text}; {percent(removed / max(1, parameters))} of all {parameters:,}"


def points(value: float | None) -> str:
    """Format a difference of two fractions: 0.012 → `+1.20 percentage points`."""
    return MISSING if value is None else f"{100 * value:+.2f} percentage points"


def number(value: float) -> str:
    """Format a number: 1234567 → `1,234,567`; 0.012345 → `0.01234`."""
    return f"{int(value):,}" if value == int(value) and abs(value) < 1e15 else f"{value:.4g}"


def ratio(factor: float) -> str:
    """Format a quotient: 38.7 → `39×`; 2.34 → `2.3×`."""
    return f"{factor:.0f}×" if factor >= 10 else f"{factor:.1f}×"


def size(count: float) -> str:
    """Format a number of bytes in powers of 1000: 23456 → `23.5 kB`."""
    unit = 0
    while count >= 1000 and unit + 1 < len(_SIZES):
        count, unit = count / 1000, unit + 1
    return f"{count:,.0f} bytes" if unit == 0 else f"{count:.3g} {_SIZES[unit]}"


def duration(seconds: float) -> str:
    """Format a time: 3.21 → `3.2 s`; 75.2 → `1 min 15 s`; 5025 → `1 h 24 min`."""
    if round(seconds, 1) < 10:
        return f"{seconds:.1f} s"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    if round(seconds) < 3600:
        return f"{round(seconds) // 60} min {round(seconds) % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"
