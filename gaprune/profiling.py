"""Where the time of a run goes: blocks of code name their part, and a profiler adds up the times.

Every moment belongs to the innermost open part, or to `other`: the parts add up to the whole.
Without an active profiler, `profiled` costs one look-up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

OTHER, START, TRANSPORT, WAITING, LOST = "other", "start", "transport", "waiting", "lost"
PARTS = {
    "load": "the network and its weights",
    "settings": "choosing unset settings",
    "calibration": "making inputs",
    "baselines": "scores of every criterion",
    START: "starting workers",
    "select": "parents and survivors",
    "vary": "crossover, mutation",
    "sample": "inputs of gradient steps",
    "gradient": "passes of gradient steps",
    "decode": "top-k: scores to masks",
    "cache": "looking up known masks",
    "mask": "masks put on weights",
    "forward": "passes of masked networks",
    "objective": "outputs to one number",
    "validate": "scores on validation inputs",
    "checkpoint": "writing checkpoints",
    "repair": "statistics and biases",
    "test": "accuracy on labelled inputs",
    "check": "checksums of the weights",
    TRANSPORT: "sending tasks and results",
    WAITING: "for results, or for tasks",
    LOST: "calls that failed",
    OTHER: "everything else",
}
"""Part → what it covers; `transport` of workers is packing, Ray, and queueing, without the work."""


class Timing(NamedTuple):
    """The time of a part and its number of calls; `other` and `waiting` count 0 calls."""

    nanoseconds: int = 0  # whole ones: sums of them are exact
    calls: int = 0

    @property
    def seconds(self) -> float:
        """The time in seconds."""
        return self.nanoseconds / 1e9


class Timings(dict[str, Timing]):
    """Part → its time so far."""

    def add(self, part: str, nanoseconds: int, calls: int = 0) -> None:
        """Add to one part."""
        before = self.get(part, Timing())
        self[part] = Timing(before.nanoseconds + nanoseconds, before.calls + calls)

    def merge(self, timings: Mapping[str, Timing]) -> None:
        """Add the times of another process."""
        for part, timing in timings.items():
            self.add(part, *timing)

    @property
    def total(self) -> Timing:
        """The sum of all parts."""
        return Timing(sum(timing.nanoseconds for timing in self.values()))

    def slowest_first(self) -> list[tuple[str, Timing]]:
        """Return the parts by falling time, `other` last."""
        return sorted(self.items(), key=lambda row: (row[0] == OTHER, -row[1].nanoseconds))

    def record(self) -> dict[str, Any]:
        """Return plain data, slowest part first."""
        rows = self.slowest_first()
        parts = {part: {"seconds": row.seconds, "calls": row.calls} for part, row in rows}
        return {"seconds": self.total.seconds, "parts": parts}


@dataclass
class Profile:
    """Where the time of a run went."""

    driver: Timings = field(default_factory=Timings)  # of this process, since the profiler started
    # Of all Ray workers together: `worker_count` times the time between their start and their end.
    # Empty where tasks ran in this process.
    workers: Timings = field(default_factory=Timings)
    worker_count: int = 0  # the largest number of Ray workers at a time

    def record(self) -> dict[str, Any]:
        """Return plain data."""
        workers = {"count": self.worker_count, **self.workers.record()}
        return {"driver": self.driver.record(), "workers": workers if self.worker_count else None}


class Profiler:
    """Adds every moment since its creation to one part.

    `synchronize` is called where a part begins or ends: on a GPU it waits for CUDA kernels, which
    run asynchronously and would be counted in a later part.
    """

    def __init__(self, synchronize: Callable[[], object] | None = None) -> None:
        self.synchronize = synchronize
        self._profile = Profile()
        self._open = [OTHER]
        self._since = time.perf_counter_ns()

    @property
    def profile(self) -> Profile:
        """The times until now."""
        self._update()
        return self._profile

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Open a part inside the one that is open."""
        self._update()
        if name not in (OTHER, self._open[-1]):  # a part directly inside itself is one call
            self._profile.driver.add(name, 0, calls=1)
        depth = len(self._open)
        self._open.append(name)
        try:
            yield
        finally:
            self._update()
            del self._open[depth:]  # an interrupt may have left inner parts open

    def _update(self) -> None:
        if self.synchronize is not None:
            self.synchronize()
        now = time.perf_counter_ns()
        self._profile.driver.add(self._open[-1], now - self._since)
        self._since = now


_ACTIVE: ContextVar[Profiler | None] = ContextVar("profiler", default=None)
_NO_PROFILER = nullcontext()


def active_profiler() -> Profiler | None:
    """Return the active profiler of this thread, or None."""
    return _ACTIVE.get()


def profiled(part: str) -> AbstractContextManager[None]:
    """Return a block whose time is added to `part`, a key of `PARTS`."""
    profiler = _ACTIVE.get()
    return _NO_PROFILER if profiler is None else profiler.part(part)


@contextmanager
def run_profiler(
    *, enabled: bool = True, synchronize: Callable[[], object] | None = None
) -> Iterator[Profiler | None]:
    """Activate a new profiler inside the block; None, and no change, if not `enabled`."""
    if not enabled:
        yield None
        return
    profiler = Profiler(synchronize)
    token = _ACTIVE.set(profiler)
    try:
        yield profiler
    finally:
        _ACTIVE.reset(token)
