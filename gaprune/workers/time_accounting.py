"""How workers elsewhere spend their time, by the clock of whoever hires them. No Ray."""

from __future__ import annotations

import time

from gaprune.profiling import LOST, START, TRANSPORT, WAITING, Timings, active_profiler


class TimeAccounting:
    """Booked while a clock runs here; without one there is nothing to do.

    Every place of the crew counts from the opening to the close, whoever has it: first somebody
    starts, then tasks are away, and in between the place waits. Only the time of the work itself is
    measured elsewhere. The rest of a task's time away is transport: no two clocks are compared.

    Args:
        places: workers at most at once.
    """

    def __init__(self, places: int) -> None:
        self._profiler = active_profiler()
        self._places, self._opened = places, time.monotonic()
        self._timings = Timings()

    @property
    def wanted(self) -> bool:
        """Whether workers are to measure their work."""
        return self._profiler is not None

    def answered(self, started: float, work: Timings | None) -> None:
        """Book a task that was handed out then, and of which the answer has just been read."""
        if work is not None:
            self._timings.merge(work)
            rest = _nanoseconds(time.monotonic() - started) - work.total.nanoseconds
            self._timings.add(TRANSPORT, rest, calls=1)

    def lost(self, started: float) -> None:
        """Book a task that was handed out then, and has just come to nothing."""
        if self.wanted:
            self._timings.add(LOST, _nanoseconds(time.monotonic() - started), calls=1)

    def close(self, starting: float, starts: int) -> None:
        """Tell the clock; what is left of the places' time is waiting.

        Args:
            starting: seconds that workers took to start, all together.
            starts: how often one was started.
        """
        if self._profiler is None:
            return
        self._timings.add(START, _nanoseconds(starting), starts)
        whole = self._places * _nanoseconds(time.monotonic() - self._opened)
        self._timings.add(WAITING, whole - self._timings.total.nanoseconds)
        profile = self._profiler.profile
        profile.workers.merge(self._timings)
        profile.worker_count = max(profile.worker_count, self._places)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
