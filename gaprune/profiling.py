"""Where the time of a run goes: parts of the code say their name, and a clock adds up.

Without a clock a part costs a look at one variable. With one, every moment belongs to the innermost
part that is open, and to `other` where none is: the parts add up to the whole, and what is inside
of two counts once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

OTHER, START, TRANSPORT, WAITING, LOST = "other", "start", "transport", "waiting", "lost"
PARTS = {
    "load": "the network and its weights",
    "settings": "filling in what was left open",
    "calibration": "making inputs",
    "baselines": "scores by every criterion",
    START: "starting workers",
    "select": "parents and survivors",
    "vary": "crossover, mutation",
    "draw": "inputs of gradient steps",
    "gradient": "passes of gradient steps",
    "express": "top-k: scores to masks",
    "recall": "whether a mask is known",
    "mask": "masks put on weights",
    "forward": "what masked networks answer",
    "objective": "answers to one number",
    "validate": "outputs on the validation inputs",
    "checkpoint": "what is kept on the disk",
    "repair": "statistics and biases",
    "test": "accuracy on labelled inputs",
    "check": "weights still as sent",
    TRANSPORT: "tasks, answers and genes",
    WAITING: "for answers, or for tasks",
    LOST: "answers that never came",
    OTHER: "everything else",
}
"""Part → what it is, in a few words.

`calibration`, `draw` and `baselines` contain what the dense network answers; `vary` moves scores along
gradients, too; `judge` is whole, with its masks. `transport` of workers is all that is not work
from a task's being handed out to its answer's being read: packing, Ray, lying there till it is.
"""


class Spent(NamedTuple):
    """The time of a part, in whole nanoseconds so that sums are exact, and how often it began.

    What has no beginning (`other`, `waiting`) counts 0 calls.
    """

    nanoseconds: int = 0
    calls: int = 0

    @property
    def seconds(self) -> float:
        """The time in seconds."""
        return self.nanoseconds / 1e9


class Ledger(dict[str, Spent]):
    """Part → what was spent on it so far."""

    def book(self, part: str, nanoseconds: int, calls: int = 0) -> None:
        """Add to a part."""
        before = self.get(part, Spent())
        self[part] = Spent(before.nanoseconds + nanoseconds, before.calls + calls)

    def book_all(self, spent: Mapping[str, Spent]) -> None:
        """Add what somebody else has booked."""
        for part, (nanoseconds, calls) in spent.items():
            self.book(part, nanoseconds, calls)

    @property
    def total(self) -> Spent:
        """All of it."""
        return Spent(sum(one.nanoseconds for one in self.values()))


@dataclass(frozen=True)
class Profile:
    """Where the time of a run went.

    Attributes:
        here: part → time of this process; they add up to the time from the clock's start to now.
        workers: the same of workers elsewhere, all together; they add up to `count` times the time
            from their start to their end. Empty where tasks ran in this process.
        count: workers elsewhere, at most at once.
    """

    here: Ledger
    workers: Ledger
    count: int = 0

    def record(self) -> dict[str, Any]:
        """Return it as plain data, dearest part first."""
        return {
            "here": _plain(self.here),
            "workers": {"count": self.count, **_plain(self.workers)} if self.count else None,
        }


def ranked(ledger: Ledger) -> list[tuple[str, Spent]]:
    """Return the parts, dearest first and `other` last."""
    return sorted(ledger.items(), key=lambda row: (row[0] == OTHER, -row[1].nanoseconds))


def _plain(ledger: Ledger) -> dict[str, Any]:
    parts = {part: {"seconds": one.seconds, "calls": one.calls} for part, one in ranked(ledger)}
    return {"seconds": ledger.total.seconds, "parts": parts}


@dataclass(eq=False)
class Clock:
    """Books every moment since it was made on one part.

    Attributes:
        synchronise: called wherever a part begins or ends; on a GPU, which is behind the program,
            it waits until the GPU has done what it was told. None where nothing is behind.
        workers: what workers elsewhere say that they spent.
        count: such workers, at most at once.
    """

    synchronise: Callable[[], object] | None = None
    workers: Ledger = field(default_factory=Ledger)
    count: int = 0
    _here: dict[str, list[int]] = field(default_factory=dict)  # as `Spent`, but changed in place
    _open: list[str] = field(default_factory=lambda: [OTHER])
    _since: int = field(default_factory=time.perf_counter_ns)

    def begin(self, part: str) -> None:
        """Book until now on the part that is open, and open another one inside it."""
        self._book()
        if part not in (OTHER, self._open[-1]):  # of a part inside itself, only the first counts
            self._here.setdefault(part, [0, 0])[1] += 1
        self._open.append(part)

    def end(self, part: str) -> None:
        """Book until now, and close a part with whatever an interrupt left open inside it."""
        self._book()
        while self._open.pop() != part:
            pass

    @property
    def here(self) -> Ledger:
        """What was spent in this process until now."""
        self._book()
        return Ledger({part: Spent(*sums) for part, sums in self._here.items()})

    def profile(self) -> Profile:
        """Return what was spent until now, here and elsewhere."""
        return Profile(self.here, Ledger(self.workers), self.count)

    def _book(self) -> None:
        if self.synchronise is not None:
            self.synchronise()
        now = time.perf_counter_ns()
        self._here.setdefault(self._open[-1], [0, 0])[0] += now - self._since
        self._since = now


class _Part:
    """The block of a part."""

    __slots__ = ("_clock", "_name")

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock, self._name = clock, name

    def __enter__(self) -> Self:
        self._clock.begin(self._name)
        return self

    def __exit__(self, *_: object) -> None:
        self._clock.end(self._name)


_RUNNING: ContextVar[Clock | None] = ContextVar("clock", default=None)
_NOTHING = nullcontext()


def running() -> Clock | None:
    """Return the clock that runs in this thread, or None."""
    return _RUNNING.get()


def spent(part: str) -> AbstractContextManager[object]:
    """Return a block whose time is that of a part, a key of `PARTS`; without a clock, nothing."""
    clock = _RUNNING.get()
    return _NOTHING if clock is None else _Part(clock, part)


@contextmanager
def waiting_for(synchronise: Callable[[], object] | None) -> Iterator[None]:
    """Let the clock that runs, if one does, wait for a device inside the block; see `Clock`."""
    clock = _RUNNING.get()
    if clock is None:
        yield
        return
    before, clock.synchronise = clock.synchronise, synchronise
    try:
        yield
    finally:
        clock.synchronise = before


@contextmanager
def measuring(
    wanted: bool = True,  # noqa: FBT001, FBT002 - it reads as `measuring(profile)`
    synchronise: Callable[[], object] | None = None,
) -> Iterator[Clock | None]:
    """Let a clock of its own run inside the block, or leave all as it is.

    Args:
        wanted: whether to measure at all; else None comes.
        synchronise: see `Clock`.
    """
    if not wanted:
        yield None
        return
    clock = Clock(synchronise)
    token = _RUNNING.set(clock)
    try:
        yield clock
    finally:
        _RUNNING.reset(token)
