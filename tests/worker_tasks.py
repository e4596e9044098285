"""Tasks for the tests of workers; Ray's actors import them from here."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from gaprune.bench import Bench
from gaprune.errors import InputError


class UnusualError(Exception):
    """An exception that no library knows."""


@dataclass(frozen=True)
class Echo:
    """Wait, then return the value."""

    value: int
    delay: float = 0.0

    def run(self, bench: Bench) -> int:
        """Return the value."""
        time.sleep(self.delay)
        return self.value


@dataclass(frozen=True)
class Fail:
    """Raise an exception of a kind."""

    kind: type[Exception]
    message: str

    def run(self, bench: Bench) -> None:
        """Raise it."""
        raise self.kind(self.message)


@dataclass(frozen=True)
class Threads:
    """Tell how many torch threads a task has."""

    def run(self, bench: Bench) -> int:
        """Return their number."""
        return torch.get_num_threads()


@dataclass(frozen=True)
class Overwrite:
    """Fill the first weights that the worker holds; return the first of them as it was."""

    value: float

    def run(self, bench: Bench) -> float:
        """Do what no task of gaprune does."""
        first = next(iter(bench.weights.values()))
        before = float(first.flatten()[0])
        with torch.no_grad():
            first.fill_(self.value)
        return before


FAILURES: list[tuple[type[Exception], str]] = [
    (InputError, "probes: rule, what came, way out"),
    (ValueError, "plain"),
    (UnusualError, "own"),
]
