"""Forks that export a network and kill themselves at one call to the system, each at the next.

``python killed_exports.py RUN FOLDER FORM [STEP...]`` exports a run again and again, each time in
a folder of its own, FOLDER/0, FOLDER/1, …, where an earlier export lies at `old` and is to be
replaced, and none at `new`. It ends when a fork comes through. With steps, only these are tried; a
step of −1 is the moment at which the files of the format are written and nothing else is.
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
from gaprune.export.format_registry import EXPORTERS


def die_after_writing(form: str) -> None:
    """Kill this process as soon as the format's own files are written."""
    real = EXPORTERS[form]

    def write(*arguments: Any) -> None:
        real.write(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    EXPORTERS[form] = replace(real, write=write)


def main(run: Path, folder: Path, form: str, steps: Iterable[int]) -> None:
    """Try every step."""
    torch.set_num_threads(1)
    for step in steps:
        place = folder / str(step)
        place.mkdir(parents=True)
        shutil.copytree(folder / "earlier", place / "old")
        through = [fork(run, place / name, form, step) for name in ("old", "new")]
        if all(through):
            shutil.rmtree(place)
            return


def fork(run: Path, out: Path, form: str, step: int) -> bool:
    """Export in a child that dies on the way; tell whether it came through."""
    child = os.fork()
    if child == 0:
        if step < 0:
            die_after_writing(form)
        else:
            die_at(step)
        export(run, form, out, overwrite=True)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    chosen = [int(step) for step in sys.argv[4:]]
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], chosen or count())
