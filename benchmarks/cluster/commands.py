"""Commands of gaprune as real processes that are watched, stopped and looked for."""

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
PATIENCE = 900.0  # seconds after which a command hangs and is killed; loaded machines are slow


class Ended(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


class EarlyEndError(AssertionError):
    """A command ended before it said what was waited for."""


class Command:
    """A real process of `python -m gaprune`, marked so that its descendants are found.

    Args:
        folder: where it runs.
        arguments: of the command.
        env: beside the environment of this process.
        module: what is run.
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
        self.process = subprocess.Popen(  # noqa: S603 - commands are made by us
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
        self._watchdog = threading.Timer(PATIENCE, self._end)  # reading would wait for ever
        self._watchdog.daemon = True
        self._watchdog.start()

    def read_until(self, *texts: str) -> str:
        """Read stderr until a line holds one of the texts and return it; "" where it ends first."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if any(text in line for text in texts):
                return line
        return ""

    def wait_for(self, text: str) -> None:
        """Read stderr until a line holds `text`.

        Raises:
            EarlyEndError: it ended before.
        """
        if not self.read_until(text):
            raise EarlyEndError(f"ended before it said {text!r}: {''.join(self.said)}")

    def finish(self) -> Ended:
        """Wait for the end and return what it did, and all that it said."""
        out, err = self.process.communicate()
        self._watchdog.cancel()
        return Ended(self.process.returncode, out, "".join(self.said) + err)

    def descendants(self) -> dict[int, str]:
        """Return the command lines of processes that inherited the mark, by their numbers."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark in (process / "environ").read_text(errors="replace"):
                    line = (process / "cmdline").read_text().replace("\0", " ")
                    found[int(process.name)] = line
            except OSError:  # gone, or somebody else's
                continue
        return found

    def actors(self) -> list[int]:
        """Return the numbers of the processes that are Ray actors."""
        return [number for number, line in self.descendants().items() if "ray::Actor" in line]

    def leaves_nobody(self, patience: float = 30.0) -> bool:
        """Tell whether everything that it started is gone, now or soon."""
        deadline = time.monotonic() + patience
        while self.descendants():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    def kill(self) -> None:
        """End it, if it still runs, and read the rest."""
        self._watchdog.cancel()
        self._end()
        self.process.communicate()

    def _end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
