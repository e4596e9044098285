"""What a library, a user's code or a machine may do to a worker, for real."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch

FOREVER = 600.0  # seconds; whoever waits for it has lost


def leave() -> None:
    """End the process at once, as a crashing library does."""
    os._exit(3)


def crash() -> None:
    """Touch memory that is not there."""
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(FOREVER)


def hang() -> None:
    """Never answer."""
    time.sleep(FOREVER)


def allocate() -> None:
    """Ask for more memory than a bound that is set just before."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**26, before[1]))
    try:
        torch.ones(2**28)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def divide() -> None:
    """Raise what the user's own code may raise."""
    raise ZeroDivisionError


MISDEEDS: dict[str, Callable[[], None]] = {
    "exit": leave,
    "segfault": crash,
    "hang": hang,
    "memory": allocate,
    "raise": divide,
}
