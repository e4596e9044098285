"""Ctrl-C and SIGTERM: the search stops, its result is saved, the exit code tells the signal."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LAST_PHASE = "test"  # from this phase on a signal does not stop the run: it ends soon anyway


class SignalHandler:
    """Inside the block, the first signal raises KeyboardInterrupt, after which the search returns.

    While results are measured and saved, the first signal is only recorded. Either way a line on
    stderr answers it, and the second signal stops everything. A KeyboardInterrupt that leaves the
    block becomes the exit code. Python sets signal handlers in the main thread only: in other
    threads the block does nothing.

    Args:
        remark: what the last line says of the work if a signal ends the block.
    """

    def __init__(self, remark: str = "nothing is saved") -> None:
        self.remark = remark
        self.received: int | None = None
        self.saving = False
        self._count = 0
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """0, or 130 after Ctrl-C and 143 after SIGTERM, as in shells."""
        return 0 if self.received is None else 128 + self.received

    def phase(self, name: str) -> None:
        """Record that a phase of the run begins."""
        self.saving = self.saving or name == LAST_PHASE

    def check(self) -> None:
        """Raise KeyboardInterrupt again if the work goes on after a signal.

        An interrupt can be lost: libraries have bare `except:` clauses, and Python ignores
        exceptions of destructors. The events of a search or a training call this.
        """
        if self.received is not None and not self.saving:
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            # others may raise KeyboardInterrupt as well: it counts as Ctrl-C
            self.received = self.received or signal.SIGINT
            print(f"gaprune: interrupted; {self.remark}", file=sys.stderr)  # noqa: T201
            raise SystemExit(self.exit_code) from None

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._count += 1
        self.received = self.received or number
        if self._count == 1:
            # os.write: a signal may arrive inside a write to Python's stderr, which cannot nest
            os.write(2, b"gaprune: finishing and saving; press again to stop at once\n")
        if not self.saving or self._count > 1:
            raise KeyboardInterrupt
