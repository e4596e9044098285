"""Kill runs while they write a checkpoint, one run per system call, and resume them.

``python -m benchmarks.cluster.killed_runs FOLDER ARGUMENTS…`` runs the command in copies of FOLDER
(FOLDER-0, FOLDER-1, …). Copy n is killed at call n of its third checkpoint and then resumed, until
a checkpoint completes. It prints one `ResumedRun` per copy as JSON. Runs are forks, which share
the slow imports.
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
from unittest.mock import patch

import torch

from benchmarks.cluster.fault_case import newest, resumed_from
from benchmarks.cluster.kills import die_at
from gaprune.cli import main as gaprune
from gaprune.io.checkpoints import write_next

COMPLETE = 2  # checkpoints before the interrupted one


class ResumedRun(NamedTuple):
    """How a run resumed.

    Attributes:
        folder: parent folder of `run`.
        code: exit code.
        saved: generation of the newest complete checkpoint.
        resumed: generation from which it resumed.
        seconds: time until the end of the resumed run.
    """

    folder: str
    code: int
    saved: int
    resumed: int
    seconds: float


def run_killed(step: int, folder: Path, arguments: Sequence[str]) -> None:
    """Run the command in this process and kill it in the third checkpoint, at call `step`."""
    os.chdir(folder)
    os.close(1)  # stdout belongs to the parent
    os.dup2(2, 1)
    written = count()

    def write(*content: Any) -> None:
        if next(written) == COMPLETE:
            die_at(step)
            write_next(*content)
            os._exit(0)
        write_next(*content)

    with patch("gaprune.runs.checkpointer.write_next", write):
        gaprune(arguments)
    os._exit(1)  # the run ended before the third checkpoint


def resume(folder: Path) -> ResumedRun:
    """Resume a killed run."""
    saved, started = newest(folder / "run" / "checkpoint"), time.monotonic()
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        with (folder / "output").open("wb") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        os._exit(gaprune(["resume", "run"]))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seconds = time.monotonic() - started
    resumed = resumed_from((folder / "output").read_text(encoding="utf-8"))
    return ResumedRun(str(folder), code, saved, resumed, seconds)


def main(folder: Path, arguments: Sequence[str]) -> int:
    """Interrupt every call; return 1 if a run fails in another way."""
    torch.set_num_threads(1)
    runs = []
    for step in count():
        copy = folder.with_name(f"{folder.name}-{step}")
        shutil.copytree(folder, copy)
        child = os.fork()
        if child == 0:
            run_killed(step, copy, arguments)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != -signal.SIGKILL:
            break
        runs.append(resume(copy))
    print(json.dumps([run._asdict() for run in runs]))
    return abs(code)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
