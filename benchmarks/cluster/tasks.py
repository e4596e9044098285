"""Small tasks that are no search; Ray's actors import them from here."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Pause:
    """Sleep for so many seconds."""

    seconds: float

    def run(self, _evaluator: object) -> float:
        """Sleep."""
        time.sleep(self.seconds)
        return self.seconds


@dataclass(frozen=True)
class Who:
    """Tell which process this is, after a while: others have the time to answer as well."""

    seconds: float = 0.05

    def run(self, _evaluator: object) -> int:
        """Return the number of the process."""
        time.sleep(self.seconds)
        return os.getpid()
