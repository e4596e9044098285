"""Whole runs that are killed while they write a checkpoint, each at the next call to the system.

``python -m benchmarks.cluster.killed_runs FOLDER ARGUMENTS…`` runs the command in copies of FOLDER
beside it (FOLDER-0, FOLDER-1, …), where each is killed during its third checkpoint, until that one
comes through. Then it goes on with all of them and prints, as JSON, a `Resumed` for each. Forks
share what takes long: the imports.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.cluster.kills import die_at
from benchmarks.cluster.trial import begin_of, newest
from gaprune.cli import main as gaprune
from gaprune.io.checkpoints import CheckpointFolder

WHOLE = 2  # checkpoints before the one that is cut


class Resumed(NamedTuple):
    """How a run went on.

    Attributes:
        place: the folder that `run` is in.
        code: exit code.
        kept: generation of the newest whole checkpoint before.
        begins: generation after which it went on.
        seconds: until its end.
    """

    place: str
    code: int
    kept: int
    begins: int
    seconds: float


def run_killed(step: int, folder: Path, arguments: Sequence[str]) -> None:
    """Run the command in this process, which dies in the third checkpoint, at call `step`."""
    os.chdir(folder)
    os.close(1)  # it is the parent's
    os.dup2(2, 1)
    real, written = CheckpointFolder.write, count()

    def write(shelf: CheckpointFolder, *content: Any) -> None:
        if next(written) == WHOLE:
            die_at(step)
            real(shelf, *content)
            os._exit(0)
        real(shelf, *content)

    CheckpointFolder.write = write  # type: ignore[assignment,method-assign] # here alone
    gaprune(arguments)
    os._exit(1)  # there was no third one


def resume(place: Path) -> Resumed:
    """Go on with a run that was killed."""
    kept, started = newest(place / "run" / "checkpoint"), time.monotonic()
    child = os.fork()
    if child == 0:
        os.chdir(place)
        with (place / "said").open("wb") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        os._exit(gaprune(["resume", "run"]))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seconds = time.monotonic() - started
    begins = begin_of((place / "said").read_text(encoding="utf-8"))
    return Resumed(str(place), code, kept, begins, seconds)


def main(folder: Path, arguments: Sequence[str]) -> int:
    """Try every call; 1 where a run ended otherwise."""
    torch.set_num_threads(1)
    found = []
    for step in count():
        place = folder.with_name(f"{folder.name}-{step}")
        shutil.copytree(folder, place)
        child = os.fork()
        if child == 0:
            run_killed(step, place, arguments)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != -signal.SIGKILL:
            break
        found.append(resume(place))
    print(json.dumps([one._asdict() for one in found]))
    return abs(code)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
