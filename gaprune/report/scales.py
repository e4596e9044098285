"""From values to places on an axis, in percent of its length, and where its ticks stand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MOST_TICKS = 6
_STEPS = (1, 2, 5, 10)


@dataclass(frozen=True)
class Linear:
    """Equal differences are equally long.

    Attributes:
        low, high: values at the ends, low < high.
    """

    low: float
    high: float

    def at(self, value: float) -> float:
        """Return the place of a value: 0 at the low end, 100 at the high one, never beyond."""
        return _clipped((value - self.low) / (self.high - self.low))

    def ticks(self, most: int = MOST_TICKS) -> list[float]:
        """Return round values inside the ends, evenly spaced."""
        return nice_ticks(self.low, self.high, most)

    @classmethod
    def around(cls, values: Iterable[float], *, gain: float = 0.05) -> Linear:
        """Return a scale on which all finite values lie, with some room at both ends."""
        held = [value for value in values if math.isfinite(value)]
        low, high = (min(held), max(held)) if held else (0.0, 1.0)
        room = gain * (high - low) or max(abs(high), 1.0) * gain
        return cls(low - room, high + room)


@dataclass(frozen=True)
class Log:
    """Equal ratios are equally long.

    Attributes:
        low, high: values at the ends, 0 < low < high.
    """

    low: float
    high: float

    def at(self, value: float) -> float:
        """Return the place of a value; 0 and less lie at the low end."""
        if value <= self.low:
            return 0.0
        return _clipped(math.log(value / self.low) / math.log(self.high / self.low))

    def ticks(self, most: int = MOST_TICKS) -> list[float]:
        """Return 1, 2 and 5 of every decade, or 1 alone, or every second decade and so on."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        wanted: list[Sequence[float]] = [
            [digit * 10.0**power for power in range(first, last + 1) for digit in digits]
            for digits in ((1, 2, 5), (1, 3), (1,))
        ]
        wanted += [wanted[-1][::every] for every in range(2, last - first + 2)]
        inside = [[one for one in ticks if self._holds(one)] for ticks in wanted]
        chosen = next(ticks for ticks in inside if len(ticks) <= most)
        return chosen if len(chosen) > 1 else nice_ticks(self.low, self.high, most)

    def _holds(self, value: float) -> bool:
        return self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)

    @classmethod
    def around(cls, values: Iterable[float], *, gain: float = 1.25) -> Log:
        """Return a scale on which all positive values lie, with some room at both ends."""
        held = [value for value in values if 0 < value < math.inf]
        low, high = (min(held), max(held)) if held else (0.1, 1.0)
        return cls(low / gain, high * gain)


@dataclass(frozen=True)
class Parts:
    """Parts of 1, logarithmic in what is missing to 1: 90, 95, 98 and 99 % stand apart.

    Attributes:
        low, high: values at the ends, low < high < 1.
    """

    low: float
    high: float

    def at(self, value: float) -> float:
        """Return the place of a value: 0 at the low end, 100 at the high one, never beyond."""
        missing = Log(1 - self.high, 1 - self.low)
        return round(100 - missing.at(1 - value), 3)

    def ticks(self, most: int = MOST_TICKS + 1) -> list[float]:
        """Return round values inside the ends; where there are many, those that stand apart."""
        inside = [one for one in _PARTS if self.low <= one <= self.high]
        least = 100 / (most + 1)
        chosen: list[float] = []
        for one in sorted(inside, key=lambda one: (one not in _ROUNDEST, one)):
            if all(abs(self.at(one) - self.at(other)) >= least for other in chosen):
                chosen.append(one)
        return sorted(chosen)

    @classmethod
    def around(cls, values: Iterable[float], *, gain: float = 1.3) -> Parts:
        """Return a scale on which all values lie; what is nearly 1 lies at its end."""
        missing = [max(1 - value, SMALLEST) for value in values if math.isfinite(value)]
        low, high = (min(missing), max(missing)) if missing else (0.1, 1.0)
        return cls(1 - min(1.0, high * gain), 1 - low / gain)


SMALLEST = 1e-4  # part that is still told from none
_PARTS = (0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995)
_ROUNDEST = (0, 0.5, 0.9, 0.99, 0.999)

Scale = Linear | Log | Parts


def nice_ticks(low: float, high: float, most: int = MOST_TICKS) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten in [low, high], at most so many.

    The step is the smallest that allows it; low < high, most > 1.
    """
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for digit in (*_STEPS, 20, 50):
        step = digit * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    digits = 3 - math.floor(math.log10(step))  # 0.6000000000000001 is 0.6
    return [round(number * step, digits) for number in range(first, last + 1)]


def _clipped(part: float) -> float:
    return round(100 * min(1.0, max(0.0, part)), 3)
