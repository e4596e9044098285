"""End the Ray of a process that is killed: a program that runs beside it until it ends.

Ray's daemons notice the end of the process that started them, but some of its agents stay for a
minute. Usage: `python watchdog.py PID`, with a pipe as standard input that closes when PID ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

POLL = 1.0  # seconds between two looks at the processes
PATIENCE = 5.0  # seconds in which all of them must have ended


def start_watchdog() -> subprocess.Popen[bytes] | None:
    """Start the program for this process; None where there is no /proc, which it reads.

    Close its standard input when Ray was shut down.
    """
    if not Path("/proc/self/stat").exists():
        return None
    # A session of its own: what stops a whole group of processes must not stop it first.
    command = [sys.executable, "-I", "-S", __file__, str(os.getpid())]
    return subprocess.Popen(  # noqa: S603 - this file
        command, stdin=subprocess.PIPE, start_new_session=True
    )


def processes() -> dict[int, tuple[int, str]]:
    """Return number → number of the parent and start time of every process."""
    table = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            # The name in brackets may hold spaces: see proc_pid_stat(5).
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            table[int(entry.name)] = int(fields[1]), fields[19]
    return table


def _is_rays(pid: int) -> bool:
    try:
        return b"/ray/" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def guard(driver: int) -> None:
    """Record Ray's processes below `driver` until standard input closes; then end those left."""
    started: dict[int, str] = {}  # number → start time, as numbers are used again

    def alive() -> list[int]:
        table = processes()
        before = -1
        while before != len(started):  # until no process has a new child
            before = len(started)
            for pid, (parent, start) in table.items():
                ours = table.get(parent, (0, ""))[1] == started.get(parent, "none")
                if ours or (parent == driver and _is_rays(pid)):
                    started[pid] = start
        return [pid for pid, start in started.items() if table.get(pid, (0, ""))[1] == start]

    while not select.select([sys.stdin], [], [], POLL)[0]:
        alive()
    deadline = time.monotonic() + PATIENCE
    while (left := alive()) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


if __name__ == "__main__":
    guard(int(sys.argv[1]))
