"""A factory file like a user's, whose code fails in workers as planned.

The plan is a folder named by an environment variable; without it nothing fails::

    calls/         one file per worker process: rows, value and hash of every scored candidate
    failure        key of `FAILURES`: happens once, from call 20 of a worker on, once there is a
                   checkpoint
    poison         hash of the outputs at which the failure happens every time instead
    locked         while it exists, no worker can load the network
    done, redone   hash and time of the failure; the time at which the candidate was scored later
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from benchmarks.cluster.injected_failures import FAILURES

PLAN = "GAPRUNE_FAULTS"
CALLS = 20  # calls of a worker before it fails
DELAY = 0.01  # seconds per call, so that the benchmark has time to interfere


class Network(nn.Module):
    """A small network that workers cannot load while the plan is locked."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(12, width), nn.Linear(width, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits `[N, 4]`."""
        out: Tensor = self.fc2(self.fc1(inputs).relu())
        return out

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call] # torch's
        if in_worker() and PLAN in os.environ and (plan() / "locked").exists():
            raise OSError("the network's file is locked")


def make() -> nn.Module:
    """Build the network."""
    return Network()


def make_large() -> nn.Module:
    """Build the network with four million weights."""
    return Network(250_000)


def grade(outputs: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
    """Return minus the mean difference to the teacher, or fail as planned."""
    value = -(outputs - teacher).abs().mean()
    if PLAN in os.environ and in_worker():
        key = hashlib.sha256(outputs.numpy().tobytes()).hexdigest()
        fail_when_due(key, f"{len(outputs)} {float(value)} {key}\n")
    return value


def fail_when_due(key: str, line: str) -> None:
    """Record the call and fail if the plan says so."""
    time.sleep(DELAY)
    calls = plan() / "calls" / str(os.getpid())
    with calls.open("a", encoding="utf-8") as file:
        file.write(line)
    record_redone(key)
    failure, poison = plan() / "failure", plan() / "poison"
    if poison.exists():
        if key == poison.read_text(encoding="utf-8"):
            FAILURES[failure.read_text(encoding="utf-8")]()
    elif failure.exists() and len(calls.read_text(encoding="utf-8").splitlines()) >= CALLS:
        # Before the first checkpoint an error in user code leaves no run to resume.
        if not any((plan().parent / "run" / "checkpoint").glob("0*")):
            return
        try:
            with (plan() / "done").open("x", encoding="utf-8") as file:
                file.write(f"{key} {time.time()}")
        except FileExistsError:  # another worker was first
            return
        FAILURES[failure.read_text(encoding="utf-8")]()


def record_redone(key: str) -> None:
    """Record the time at which the failed candidate is scored."""
    done, redone = plan() / "done", plan() / "redone"
    if done.exists() and not redone.exists() and done.read_text().split()[0] == key:
        redone.write_text(str(time.time()), encoding="utf-8")


def plan() -> Path:
    """Return the folder of the plan."""
    return Path(os.environ[PLAN])


def in_worker() -> bool:
    """Return whether this process is a Ray worker."""
    return Path(sys.argv[0]).name == "default_worker.py"
