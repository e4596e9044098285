"""How much is put up with: attempts, waiting times, what counts as a hang or as a straggler."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median

SHORTEST_LIMIT = 60.0  # seconds that every task is given
SLOWER = 20.0  # times the slowest one of its kind so far is a hang
UNKNOWN_LIMIT = 3600.0  # seconds, while none of a kind has finished
LATER = 3.0  # times the median of its kind is a straggler
LATER_LEAST = 2.0  # seconds below which nothing is one
REMEMBERED = 64  # durations of a kind


@dataclass(frozen=True)
class RetryPolicy:
    """What is done about tasks and workers that are lost; all times in seconds.

    Attributes:
        retries: how often a task that lost its worker is tried again.
        timeout: a task that takes longer hangs; None decides by how long others took.
        first_wait: before a task or a worker is tried again; `growth` times as long each time.
        growth: see `first_wait`.
        longest_wait: at most so long. The loss of a node is noticed after some 17 s.
        start: a worker that is not ready by then failed to start.
        starts: failures in a row after which a worker is given up, if none other works.
    """

    retries: int = 2
    timeout: float | None = None
    first_wait: float = 1.0
    growth: float = 5.0
    longest_wait: float = 30.0
    start: float = 120.0
    starts: int = 3

    def wait(self, failures: int) -> float:
        """Return how long to wait after so many failures in a row: exponential, with a bound."""
        if failures < 1:
            return 0.0
        wait = self.first_wait
        for _ in range(failures - 1):
            if wait >= self.longest_wait:
                break
            wait *= self.growth
        return min(wait, self.longest_wait)


class Durations:
    """How long tasks take, by kind.

    Args:
        timeout: where the user has stated when a task hangs; else None.
    """

    def __init__(self, timeout: float | None = None) -> None:
        self._timeout = timeout
        self._recent: dict[str, deque[float]] = {}
        self._slowest: dict[str, float] = {}
        self._late: dict[str, float] = {}

    def add(self, kind: str, seconds: float) -> None:
        """Remember one that has finished."""
        self._recent.setdefault(kind, deque(maxlen=REMEMBERED)).append(seconds)
        self._slowest[kind] = max(seconds, self._slowest.get(kind, 0.0))
        self._late.pop(kind, None)

    def limit(self, kind: str) -> float:
        """Return after how many seconds a task of this kind hangs.

        It becomes shorter once: when the first one of the kind has told what to expect.
        """
        if self._timeout is not None:
            return self._timeout
        slowest = self._slowest.get(kind)
        return UNKNOWN_LIMIT if slowest is None else max(SHORTEST_LIMIT, SLOWER * slowest)

    def late(self, kind: str) -> float:
        """Return after how many seconds a task is a straggler; none is before one has finished."""
        if kind not in self._recent:
            return float("inf")
        if kind not in self._late:  # asked for more often than it changes
            self._late[kind] = max(LATER_LEAST, LATER * median(self._recent[kind]))
        return self._late[kind]
