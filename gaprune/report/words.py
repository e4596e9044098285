"""Numbers and facts as a reader meets them: percentages, times, sizes, and where data came from."""

from __future__ import annotations

import math

MISSING = "–"
TIED = "\u00a0"  # a space where no line is broken
_SIZES = ("bytes", "kB", "MB", "GB", "TB")

DATA_LEVELS = {
    "none": "No input was shown to the network: the weights alone decided.",
    "noise": "No real input was shown to the network: random noise only.",
    "procedural": "No real input was shown to the network: patterns drawn by a program only.",
    "inversion": "No real input was shown to the network: inputs were recovered from the network "
    "itself.",
    "proxy": "The network was shown somebody else's data of the same kind, not that which it was "
    "trained on.",
    "unlabelled": "The network was shown inputs of its own domain, without labels.",
    "labelled": "The network was shown labelled inputs of its own domain.",
}
ENDINGS = {
    "generations": "after all its generations",
    "evaluations": "at its limit of evaluations",
    "seconds": "at its limit of time",
    "stagnation": "because nothing improved any more",
    "validation": "because it gained on its own calibration inputs and lost on the validation inputs",
    "interrupted": "when somebody stopped it; this is the best so far",
    "one-shot": "at once: one criterion ranked the weights and nothing was searched",
}


def percent(value: float | None, digits: int = 1) -> str:
    """0.9534 → `95.3 %`; of what is nearly all or nothing more digits; unknown → a dash."""
    if value is None or not math.isfinite(value):
        return MISSING
    while digits < 4 and value not in (0, 1) and round(value, 2 + digits) in (0, 1):
        digits += 1
    return f"{100 * value:.{digits}f}{TIED}%"


def points(value: float | None) -> str:
    """A difference of two percentages: 0.012 → `+1.2 points`."""
    if value is None:
        return MISSING
    return f"{100 * value:+.1f}{TIED}points".replace("-", "−")


def number(value: float) -> str:
    """1234567 → `1,234,567`; 0.012345 → `0.01234`; −0.5 → `−0.5`."""
    if value == int(value) and abs(value) < 1e15:
        text = f"{int(value):,}"
    else:
        text = f"{value:.4g}"
    return text.replace("-", "−")


def short(value: float) -> str:
    """The same for an axis: 25000 → `25k`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}".replace("-", "−")
    return f"{value:g}".replace("-", "−")


def size(count: float) -> str:
    """23456 → `23.5 kB`."""
    unit = 0
    while count >= 1000 and unit + 1 < len(_SIZES):
        count, unit = count / 1000, unit + 1
    return f"{count:,.0f}{TIED}bytes" if unit == 0 else f"{count:.3g}{TIED}{_SIZES[unit]}"


def certainty(part: float | None) -> str:
    """A probability in whole percent that is never said to be all: 0.9999 → `>99 %`."""
    if part is None or not math.isfinite(part):
        return MISSING
    return f">99{TIED}%" if part > 0.995 else f"{100 * part:.0f}{TIED}%"


def duration(seconds: float) -> str:
    """75.2 → `1 min 15 s`; 5025 → `1 h 24 min`."""
    if seconds < 60:
        return f"{seconds:.1f}{TIED}s" if seconds < 9.95 else f"{seconds:.0f}{TIED}s"
    minutes = seconds / 60
    if minutes < 60:
        return f"{int(minutes)}{TIED}min {int(seconds) % 60}{TIED}s"
    hours = round(minutes)
    return f"{hours // 60}{TIED}h {hours % 60}{TIED}min"


def times(factor: float) -> str:
    """38.7 → `39 ×`; 2.34 → `2.3 ×`."""
    return f"{factor:.0f}{TIED}×" if factor >= 10 else f"{factor:.1f}{TIED}×"


def listing(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(items) if len(items) < 3 else f"{', '.join(items[:-1])} and {items[-1]}"
