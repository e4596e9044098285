"""Forks that write a checkpoint and kill themselves at one call to the system, each at the next.

``python killed_writers.py FOLDER`` leaves one folder per call: FOLDER/0, FOLDER/1, … In each, two
checkpoints were written whole, and the third until that call. It ends when a fork comes through.
"""

from __future__ import annotations

import os
import sys
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks.cluster.kills import die_at
from gaprune.io.checkpoints import write_next


def save(folder: Path, number: int) -> None:
    """Write a checkpoint whose content is its number."""
    write_next(folder, {"number": number}, {"scores": torch.full((1000,), float(number))})


def main(folder: Path) -> None:
    """Try every step."""
    for step in count():
        case = folder / str(step)
        for number in (1, 2):
            save(case, number)
        child = os.fork()
        if child == 0:
            die_at(step)
            save(case, 3)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
