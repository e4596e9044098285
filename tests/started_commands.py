"""Commands of gaprune as real processes, for tests that stop them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import Ran


class Command:
    """A real process of `python -m gaprune`, marked so that its descendants are found."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.mark = f"mark-{uuid.uuid4().hex}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gaprune", *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "GAPRUNE_MARK": self.mark,
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
        )

    def wait_for(self, text: str) -> None:
        """Read stderr until a line holds `text`."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if text in line:
                return
        pytest.fail(f"ended before it said {text!r}")

    def end(self) -> Ran:
        """Wait for the end and return what it did."""
        out, err = self.process.communicate(timeout=60)
        return Ran(self.process.returncode, out, err)

    def descendants(self) -> list[str]:
        """Return the command lines of processes that inherited the mark."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark in (process / "environ").read_text(errors="replace"):
                    found.append((process / "cmdline").read_text().replace("\0", " "))
            except OSError:  # gone, or somebody else's
                continue
        return found


@contextmanager
def starting(place: Path) -> Iterator[Callable[..., Command]]:
    """Give a way to start commands; whatever is left of them at the end is killed."""
    started: list[Command] = []

    def call(*arguments: str) -> Command:
        started.append(Command(place, *arguments))
        return started[-1]

    yield call
    for command in started:
        if command.process.poll() is None:
            os.killpg(command.process.pid, signal.SIGKILL)
        command.process.communicate()
