"""Commands of gaprune as real processes: read their output, stop them, find their children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 900.0  # seconds until a command counts as hung and is killed


class CommandResult(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


class EarlyEndError(AssertionError):
    """A command ended before it printed an expected text."""


class Command:
    """A process of `python -m gaprune`, marked in its environment to find its descendants.

    Args:
        folder: working directory.
        arguments: arguments of the command.
        env: variables added to the environment of this process.
        module: module to run.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        module: str = "gaprune",
    ) -> None:
        self.mark = f"mark-{uuid.uuid4().hex}"
        self.said: list[str] = []
        path = dict.fromkeys((str(ROOT), *filter(None, sys.path)))
        self.process = subprocess.Popen(  # noqa: S603 - fixed commands
            [sys.executable, "-m", module, *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "RAY_USAGE_STATS_ENABLED": "0",
                "GAPRUNE_MARK": self.mark,
                "PYTHONPATH": os.pathsep.join(path),
                **(env or {}),
            },
        )
        self._watchdog = threading.Timer(PATIENCE, self._end)  # reading would block forever
        self._watchdog.daemon = True
        self._watchdog.start()

    def read_until(self, *texts: str) -> str:
        """Read stderr until a line contains one of the texts; return the line, or "" at the end."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if any(text in line for text in texts):
                return line
        return ""

    def wait_for(self, text: str) -> None:
        """Read stderr until a line contains `text`.

        Raises:
            EarlyEndError: the command ended before.
        """
        if not self.read_until(text):
            raise EarlyEndError(f"ended before it printed {text!r}: {''.join(self.said)}")

    def finish(self) -> CommandResult:
        """Wait for the end and return exit code and complete output."""
        out, err = self.process.communicate()
        self._watchdog.cancel()
        return CommandResult(self.process.returncode, out, "".join(self.said) + err)

    def descendants(self) -> dict[int, str]:
        """Return process id → command line of the processes that inherited the mark."""
        descendants = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark in (process / "environ").read_text(errors="replace"):
                    line = (process / "cmdline").read_text().replace("\0", " ")
                    descendants[int(process.name)] = line
            except OSError:  # the process ended, or belongs to another user
                continue
        return descendants

    def actors(self) -> list[int]:
        """Return the process ids of Ray actors."""
        return [number for number, line in self.descendants().items() if "ray::Actor" in line]

    def leaves_no_process(self, patience: float = 30.0) -> bool:
        """Return whether all processes that it started end within `patience` seconds."""
        deadline = time.monotonic() + patience
        while self.descendants():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    def kill(self) -> None:
        """Kill it, if it still runs, and read the remaining output."""
        self._watchdog.cancel()
        self._end()
        self.process.communicate()

    def _end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
