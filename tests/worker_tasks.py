"""Tasks for the tests of workers; Ray's actors import them from here."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from gaprune.errors import InputError
from gaprune.evaluation.evaluator import Evaluator
from gaprune.workers.actor import Actor


class UnusualError(Exception):
    """An exception that no library knows."""


@dataclass(frozen=True)
class Echo:
    """Wait, then return the value."""

    value: int
    delay: float = 0.0

    def run(self, evaluator: Evaluator) -> int:
        """Return the value."""
        time.sleep(self.delay)
        return self.value


@dataclass(frozen=True)
class Fail:
    """Raise an exception of a kind."""

    kind: type[Exception]
    message: str

    def run(self, evaluator: Evaluator) -> None:
        """Raise it."""
        raise self.kind(self.message)


@dataclass(frozen=True)
class Threads:
    """Tell how many torch threads a task has."""

    def run(self, evaluator: Evaluator) -> int:
        """Return their number."""
        return torch.get_num_threads()


def unreserved() -> Any:  # noqa: ANN401 - Ray's
    """Make an actor that needs no CPU, beside others that have them all."""
    return Actor.options(num_cpus=0).remote()  # type: ignore[attr-defined]


FAILURES: list[tuple[type[Exception], str]] = [
    (InputError, "calibration inputs: rule, what came, way out"),
    (ValueError, "plain"),
    (UnusualError, "own"),
]
