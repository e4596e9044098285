"""Ctrl-C and SIGTERM: the search ends, what it has found is kept, the exit code says which."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ENDING = "test"  # from this phase on a signal no longer stops the run: only measuring is left
PATIENCE = 2  # as many signals stop it all the same


class SignalHandler:
    """Inside the block the first signal raises KeyboardInterrupt, from where the search returns.

    While results are measured and saved, it is noted instead. Either way a line on stderr answers
    it, and the second one stops everything. A KeyboardInterrupt that leaves the block becomes the
    exit code. Signal handlers exist in the main thread only: elsewhere the block does nothing.

    Args:
        remark: what is said to have become of the work when the block is left by a signal.
    """

    def __init__(self, remark: str = "nothing is saved") -> None:
        self.remark = remark
        self.received: int | None = None
        self.ending = False
        self._count = 0
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """0, or 130 after Ctrl-C and 143 after SIGTERM, as shells count."""
        return 0 if self.received is None else 128 + self.received

    def phase(self, name: str) -> None:
        """Note which part of the run begins."""
        self.ending = self.ending or name == ENDING

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.received = self.received or signal.SIGINT
            print(f"gaprune: interrupted; {self.remark}", file=sys.stderr)  # noqa: T201
            raise SystemExit(self.exit_code) from None

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._count += 1
        self.received = self.received or number
        if self._count < PATIENCE:  # past Python's streams, which must not be entered twice
            os.write(2, b"gaprune: finishing what was found; once more stops at once\n")
        if not self.ending or self._count >= PATIENCE:
            raise KeyboardInterrupt
