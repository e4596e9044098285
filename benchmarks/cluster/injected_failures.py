"""Failures of a worker that a library, user code or the machine can cause."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch

FOREVER = 600.0  # seconds, longer than any benchmark waits


def leave() -> None:
    """End the process at once, as a crashing library does."""
    os._exit(3)


def crash() -> None:
    """Cause a segmentation fault."""
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(FOREVER)


def hang() -> None:
    """Hang."""
    time.sleep(FOREVER)


def allocate() -> None:
    """Allocate more memory than a limit that is set just before."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**26, before[1]))
    try:
        torch.ones(2**28)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def divide() -> None:
    """Raise an exception, as user code may."""
    raise ZeroDivisionError


FAILURES: dict[str, Callable[[], None]] = {
    "exit": leave,
    "segfault": crash,
    "hang": hang,
    "memory": allocate,
    "raise": divide,
}
