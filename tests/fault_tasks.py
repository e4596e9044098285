"""Tasks and benches that take their workers down; Ray's actors import them from here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.cluster.injected_failures import FAILURES, divide
from gaprune.evaluation.evaluator import Evaluator


def spoil(evaluator: Evaluator) -> None:
    """Change one weight in one bit."""
    weight = next(iter(evaluator.network.weights.values()))
    weight.view(torch.int32).reshape(-1)[3] ^= 1


def alone(misdeed: Callable[[], None]) -> Callable[[object], None]:
    """Return a fault that needs no evaluator."""
    return lambda _evaluator: misdeed()


FAULTS: dict[str, Callable[..., None]] = {
    **{name: alone(misdeed) for name, misdeed in FAILURES.items() if name != "raise"},
    "weights": spoil,
}


@dataclass(frozen=True)
class Faulty:
    """A task that goes wrong the first times it is tried, wherever that is.

    Attributes:
        fault: one of `FAULTS`.
        folder: where every try leaves a file.
        times: so many tries go wrong.
        task: what is run then, and always in the end.
    """

    fault: str
    folder: str
    times: int
    task: Any

    @property
    def kind(self) -> str:
        """Nothing is known of how long it takes, so it is no straggler."""
        return self.folder

    def run(self, evaluator: object) -> Any:  # noqa: ANN401 - whatever the task returns
        """Go wrong, or run the task."""
        tries = len(list(Path(self.folder).iterdir()))
        (Path(self.folder) / f"{time.monotonic_ns()}").touch()
        if tries < self.times:
            {**FAULTS, "raise": alone(divide)}[self.fault](evaluator)
        return self.task.run(evaluator)


@dataclass(frozen=True, eq=False)
class Heavy:
    """Genes of some size."""

    numbers: Tensor


@dataclass(frozen=True)
class Yield:
    """A result with genes."""

    genes: Heavy
    sum: float


@dataclass(frozen=True)
class Grow:
    """Make genes of a seed, or of a parent."""

    seed: int
    size: int = 50_000
    parents: tuple[Heavy, ...] = ()

    def run(self, evaluator: object) -> Yield:
        """Return them with their sum."""
        start = self.parents[0].numbers if self.parents else torch.zeros(self.size)
        noise = torch.rand(self.size, generator=torch.Generator().manual_seed(self.seed))
        return Yield(Heavy(start + noise), float((start + noise).sum()))


class Locked:
    """An evaluator that cannot be loaded while a file is there.

    Args:
        file: which.
        ending: whether the process ends instead of raising.
    """

    def __init__(self, file: Path, *, ending: bool = False) -> None:
        self.file, self.ending = file, ending

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.file.exists():
            if self.ending:
                os._exit(3)
            raise OSError(f"{self.file.name} is in the way")
