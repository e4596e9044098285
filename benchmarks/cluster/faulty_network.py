"""A factory file as users write them, whose code goes wrong in workers where a plan says so.

The plan is a folder, named by an environment variable; without it nothing goes wrong::

    calls/         what workers have scored: one file per process; rows, value, hash of every call
    misdeed        one of `MISDEEDS`: done once, from some worker's twentieth call on, if the run
                   has a checkpoint
    poison         hash of the outputs at which it is done, every time, instead
    locked         as long as it is there, no worker can load the network
    done, redone   hash and time of the misdeed; the time at which the same was scored in the end
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from benchmarks.cluster.misdeeds import MISDEEDS

PLAN = "GAPRUNE_FAULTS"
CALLS = 20  # of one worker until it goes wrong
SLOW = 0.01  # seconds of a call: somebody who watches has the time to interfere


class Network(nn.Module):
    """A small network that workers may be unable to load."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(12, 48), nn.Linear(48, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits `[N, 4]`."""
        out: Tensor = self.fc2(self.fc1(inputs).relu())
        return out

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call] # torch's
        if in_worker() and PLAN in os.environ and (plan() / "locked").exists():
            raise OSError("the network's file is locked")


def make() -> nn.Module:
    """Build it."""
    return Network()


def grade(outputs: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
    """Return minus the mean difference to the teacher, unless something goes wrong."""
    value = -(outputs - teacher).abs().mean()
    if PLAN in os.environ and in_worker():
        found = hashlib.sha256(outputs.numpy().tobytes()).hexdigest()
        misbehave(found, f"{len(outputs)} {float(value)} {found}\n")
    return value


def misbehave(found: str, line: str) -> None:
    """Note the call, and go wrong if its turn has come."""
    time.sleep(SLOW)
    calls = plan() / "calls" / str(os.getpid())
    with calls.open("a", encoding="utf-8") as file:
        file.write(line)
    redo(found)
    misdeed, poison = plan() / "misdeed", plan() / "poison"
    if poison.exists():
        if found == poison.read_text(encoding="utf-8"):
            MISDEEDS[misdeed.read_text(encoding="utf-8")]()
    elif misdeed.exists() and len(calls.read_text(encoding="utf-8").splitlines()) >= CALLS:
        # before the first checkpoint, an error in the user's code leaves no run to resume
        if not any((plan().parent / "run" / "checkpoint").glob("0*")):
            return
        try:
            with (plan() / "done").open("x", encoding="utf-8") as file:
                file.write(f"{found} {time.time()}")
        except FileExistsError:  # another worker was first
            return
        MISDEEDS[misdeed.read_text(encoding="utf-8")]()


def redo(found: str) -> None:
    """Note when what went wrong has been done after all."""
    done, redone = plan() / "done", plan() / "redone"
    if done.exists() and not redone.exists() and done.read_text().split()[0] == found:
        redone.write_text(str(time.time()), encoding="utf-8")


def plan() -> Path:
    """Return the folder of the plan."""
    return Path(os.environ[PLAN])


def in_worker() -> bool:
    """Tell whether this process is one of Ray's."""
    return Path(sys.argv[0]).name == "default_worker.py"
