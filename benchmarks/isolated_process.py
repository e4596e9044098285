"""Run a function in a new process, and the peak memory of a process."""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import torch

from gaprune.errors import GapruneError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

STATUS = Path("/proc/self/status")


def run_isolated(function: Callable[[*Ts], T], *arguments: *Ts) -> T:
    """Run a function in a new process with one torch thread and return its result.

    Function, arguments and result must be picklable. The new process ends with this one.

    Raises:
        GapruneError: it ended without a result; its stderr says why.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    work = (sender, function, *arguments)
    process = context.Process(target=_answer, args=work, daemon=True)
    process.start()
    sender.close()
    try:
        result: T = receiver.recv()
    except EOFError:
        process.join()
        raise GapruneError(_ending(process.exitcode)) from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    return result


def peak_mb() -> float:
    """Return the peak memory of this process in MB (1e6 bytes)."""
    # On Linux, ru_maxrss also counts the memory of the parent at the start: VmHWM does not.
    status = STATUS.read_text() if STATUS.exists() else ""
    if match := re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE):
        return int(match[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # bytes per unit of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _answer(sender: Connection, function: Callable[[*Ts], object], *arguments: *Ts) -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the parent, which ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    sender.send(function(*arguments))


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"its process was ended by {signal.Signals(-code).name} (out of memory?)"
    return f"its process ended with exit status {code}; stderr says more"
