"""Scales: from values to positions on an axis in percent, and the values of its ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MOST_TICKS = 6
_STEPS = (1, 2, 5, 10)


@dataclass(frozen=True)
class Linear:
    """A linear scale."""

    low: float  # values at the ends, low < high
    high: float

    def at(self, value: float) -> float:
        """Return the position of a value, clipped to 0 at the low end and 100 at the high end."""
        return _clipped((value - self.low) / (self.high - self.low))

    def ticks(self, most: int = MOST_TICKS) -> list[float]:
        """Return round values inside the ends, evenly spaced."""
        return nice_ticks(self.low, self.high, most)

    @classmethod
    def around(cls, values: Iterable[float], *, gain: float = 0.05) -> Linear:
        """Return a scale for all finite values, with a margin at both ends."""
        finite = [value for value in values if math.isfinite(value)]
        low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
        # Equal values have no range: the margin then depends on their magnitude.
        margin = gain * (high - low) or max(abs(high), 1.0) * gain
        return cls(low - margin, high + margin)


@dataclass(frozen=True)
class Log:
    """A logarithmic scale."""

    low: float  # values at the ends, 0 < low < high
    high: float

    def at(self, value: float) -> float:
        """Return the position of a value, as `Linear.at`; 0 and less are at the low end."""
        if value <= self.low:
            return 0.0
        return _clipped(math.log(value / self.low) / math.log(self.high / self.low))

    def ticks(self, most: int = MOST_TICKS) -> list[float]:
        """Return 1, 2 and 5 of every decade, or 1 alone, or every second decade and so on."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        # Try the densest ticks first, and take the first list that fits.
        wanted: list[Sequence[float]] = [
            [digit * 10.0**power for power in range(first, last + 1) for digit in digits]
            for digits in ((1, 2, 5), (1, 3), (1,))
        ]
        wanted += [wanted[-1][::every] for every in range(2, last - first + 2)]
        inside = [[value for value in ticks if self._contains(value)] for ticks in wanted]
        # A range within one decade may hold a single power of ten, so use linear ticks there.
        chosen = next(ticks for ticks in inside if len(ticks) <= most)
        return chosen if len(chosen) > 1 else nice_ticks(self.low, self.high, most)

    def _contains(self, value: float) -> bool:
        return self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)

    @classmethod
    def around(cls, values: Iterable[float], *, gain: float = 1.25) -> Log:
        """Return a scale for all positive values, with a margin at both ends."""
        finite = [value for value in values if 0 < value < math.inf]
        low, high = (min(finite), max(finite)) if finite else (0.1, 1.0)
        return cls(low / gain, high * gain)


@dataclass(frozen=True)
class Fractions:
    """A scale that is logarithmic in 1 − value: 90, 99 and 99.9 % are evenly spaced."""

    low: float  # values at the ends, low < high < 1
    high: float

    def at(self, value: float) -> float:
        """Return the position of a value, clipped to 0 at the low end and 100 at the high end."""
        # 1 − value falls as value rises, so the logarithmic scale runs backwards.
        missing = Log(1 - self.high, 1 - self.low)
        return round(100 - missing.at(1 - value), 3)

    def ticks(self, most: int = MOST_TICKS + 1) -> list[float]:
        """Return round values inside the ends, at a minimal distance from each other."""
        # Round values win: others are added only where there is space between them.
        inside = [value for value in _PARTS if self.low <= value <= self.high]
        least = 100 / (most + 1)
        chosen: list[float] = []
        for value in sorted(inside, key=lambda value: (value not in _ROUNDEST, value)):
            if all(abs(self.at(value) - self.at(other)) >= least for other in chosen):
                chosen.append(value)
        return sorted(chosen)

    @classmethod
    def around(cls, values: Iterable[float], *, gain: float = 1.3) -> Fractions:
        """Return a scale for all values; those within 1e-4 of 1 are at its end."""
        missing = [max(1 - value, SMALLEST) for value in values if math.isfinite(value)]
        # Margins are ratios of 1 − value, which is what the axis shows.
        low, high = (min(missing), max(missing)) if missing else (0.1, 1.0)
        return cls(1 - min(1.0, high * gain), 1 - low / gain)


SMALLEST = 1e-4  # values closer to 1 are drawn as 1
_PARTS = (0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995)
_ROUNDEST = (0, 0.5, 0.9, 0.99, 0.999)

Scale = Linear | Log | Fractions


def nice_ticks(low: float, high: float, most: int = MOST_TICKS) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten in [low, high], at most so many.

    The step is the smallest that allows it; low < high, most > 1.
    """
    # Start below the ideal step, and enlarge it until few enough multiples lie inside.
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for digit in (*_STEPS, 20, 50):
        step = digit * power
        # The tolerance keeps ticks at the ends that rounding would push out.
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    digits = 3 - math.floor(math.log10(step))  # 0.6000000000000001 is 0.6
    return [round(number * step, digits) for number in range(first, last + 1)]


def _clipped(part: float) -> float:
    return round(100 * min(1.0, max(0.0, part)), 3)


def short(value: float) -> str:
    """Format a large number for a tick label: 25000 → `25k`."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"
