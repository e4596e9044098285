"""Who is told what happens during a run; consoles and reports implement this."""

from __future__ import annotations

from typing import Protocol

from gaprune.records import BaselineScore, Generation


class Observer(Protocol):
    """Receives the events of a run, in order; none of them may change it."""

    def phase(self, name: str, detail: str) -> None:
        """A part of the run begins, for example `probes`."""

    def baseline(self, name: str, score: BaselineScore) -> None:
        """A baseline mask was judged on the guard."""

    def generation(self, record: Generation, total: int | None) -> None:
        """A generation ended; `total` is how many are planned, where that is known."""

    def warning(self, text: str) -> None:
        """Something the user should know, in a sentence."""


class Silence:
    """An observer that says nothing."""

    def phase(self, name: str, detail: str) -> None:
        """Ignore it."""

    def baseline(self, name: str, score: BaselineScore) -> None:
        """Ignore it."""

    def generation(self, record: Generation, total: int | None) -> None:
        """Ignore it."""

    def warning(self, text: str) -> None:
        """Ignore it."""
