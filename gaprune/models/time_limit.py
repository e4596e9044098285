"""The limit `seconds` of a run: checked before every forward pass of its network.

Inside `TimeLimit.active`, `check_time` raises `TimeIsUp` once the time is over. Every forward pass
of the network calls it, so generators of inputs, criteria, gradient steps and evaluations need no
clock of their own. Ray workers have none: the driver stops waiting for them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf
from typing import Any

from torch import nn

GRACE, GRACE_SHARE = 3.0, 0.1  # the time to finish a result: seconds, or this share of the limit


class TimeIsUp(BaseException):  # an event like KeyboardInterrupt
    """The time of a run is over; what handles errors of a network must not handle it.

    `results` are those of an unfinished sequence of tasks, in order; None where there is none yet.
    """

    def __init__(self, results: Sequence[Any] = ()) -> None:
        super().__init__()
        self.results = results


class TimeLimit:
    """When a run must have its result: `seconds` after `started`, or never.

    `started` is a time of `time.monotonic()`; None is now.
    """

    def __init__(self, seconds: float | None = None, started: float | None = None) -> None:
        self.seconds = seconds
        begin = time.monotonic() if started is None else started
        self._end = inf if seconds is None else begin + seconds

    @property
    def grace(self) -> float:
        """Seconds after the limit in which the result must be finished."""
        return max(GRACE, GRACE_SHARE * (self.seconds or 0.0))

    @property
    def left(self) -> float:
        """Seconds until the limit; negative after it, infinite without one."""
        return self._end - time.monotonic()

    def bring_forward(self, seconds: float) -> None:
        """End earlier: for time spent by an earlier process, or needed to finish the result."""
        self._end -= seconds

    def start_grace(self) -> None:
        """Allow half of the grace once more: the other half is for the result."""
        self._end = min(inf, time.monotonic() + self.grace / 2)

    @contextmanager
    def active(self, model: nn.Module) -> Iterator[None]:
        """Make `check_time` check this limit inside the block, before every pass of `model`."""
        if self.seconds is None:
            yield
            return
        token = _ACTIVE.set(self)
        hook = model.register_forward_pre_hook(_before_forward)
        try:
            yield
        finally:
            hook.remove()
            _ACTIVE.reset(token)


_ACTIVE: ContextVar[TimeLimit] = ContextVar("time_limit", default=TimeLimit())  # noqa: B039 # has none


def active_limit() -> TimeLimit:
    """Return the active limit; outside of all blocks one that never ends."""
    return _ACTIVE.get()


def check_time() -> None:
    """Raise `TimeIsUp` after the active limit."""
    if active_limit().left <= 0:
        raise TimeIsUp


def _before_forward(_module: nn.Module, _inputs: object) -> None:
    check_time()
