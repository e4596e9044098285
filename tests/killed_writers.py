"""Forks that write a checkpoint and kill themselves at one call to the system, each at the next.

``python killed_writers.py FOLDER`` leaves one folder per call: FOLDER/0, FOLDER/1, … In each, two
checkpoints were written whole, and the third until that call. It ends when a fork comes through.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from gaprune.checkpoint import Shelf

CALLS = ("mkdir", "open", "write", "fsync", "close", "rename", "replace", "unlink", "rmdir")


def keep(shelf: Shelf, number: int) -> None:
    """Write a checkpoint that is told from others."""
    shelf.write({"number": number}, {"scores": torch.full((1000,), float(number))})


def die_at(step: int) -> None:
    """Kill this process at its call number `step` from now on; of a write, half is done."""
    calls = count()

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - as the system's
            if next(calls) == step:
                if name == "write":
                    real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    for name in CALLS:
        setattr(os, name, wrapped(name, getattr(os, name)))


def main(folder: Path) -> None:
    """Try every step."""
    for step in count():
        shelf = Shelf(folder / str(step))
        for number in (1, 2):
            keep(shelf, number)
        child = os.fork()
        if child == 0:
            die_at(step)
            keep(shelf, 3)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
