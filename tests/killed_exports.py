"""Processes that export a network and kill themselves at one system call, each at the next.

``python killed_exports.py RUN FOLDER FORMAT [STEP...]`` exports a run in FOLDER/0, FOLDER/1, …:
over an earlier export at `old`, and to `new`. It ends when an export completes. With steps, only
these are tried; step −1 is the moment at which the format has written its files.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks.cluster.kills import die_at
from gaprune import export
from gaprune.exports.format_registry import EXPORTERS


def main(run: Path, folder: Path, form: str, steps: Iterable[int]) -> None:
    """Try every step."""
    torch.set_num_threads(1)
    for step in steps:
        path = folder / str(step)
        path.mkdir(parents=True)
        shutil.copytree(folder / "earlier", path / "old")
        completed = [fork(run, path / name, form, step) for name in ("old", "new")]
        if all(completed):
            shutil.rmtree(path)
            return


def fork(run: Path, out: Path, form: str, step: int) -> bool:
    """Export in a child that kills itself at a step; tell whether it completed."""
    child = os.fork()
    if child == 0:
        exporter = EXPORTERS[form]

        def write_and_die(*arguments: Any) -> None:
            exporter.write(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)

        if step < 0:
            EXPORTERS[form] = replace(exporter, write=write_and_die)
        else:
            die_at(step)
        export(run, form, out, overwrite=True)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    chosen = [int(step) for step in sys.argv[4:]]
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], chosen or count())
