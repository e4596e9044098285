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

    def progress(self, what: str, done: float, total: float | None) -> None:
        """Of a long part, `done` of `total` units are behind; `what` names it in a few words.

        The total is None where it is not known.
        """

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

    def progress(self, what: str, done: float, total: float | None) -> None:
        """Ignore it."""

    def warning(self, text: str) -> None:
        """Ignore it."""


class Part(Silence):
    """Hears a run that is one part of a longer one, and hands on warnings and progress only.

    Args:
        observer: of the longer run.
        what: names the part.
        said: warnings that have been given; none is given twice, whatever the part.
    """

    def __init__(self, observer: Observer, what: str, said: set[str] | None = None) -> None:
        self._observer, self._what = observer, what
        self._said = set() if said is None else said

    def generation(self, record: Generation, total: int | None) -> None:
        """Hand on how far the search is."""
        self._observer.progress(f"{self._what}, generation", record.generation, total)

    def progress(self, what: str, done: float, total: float | None) -> None:
        """Hand it on."""
        self._observer.progress(f"{self._what}, {what}", done, total)

    def warning(self, text: str) -> None:
        """Hand it on, once."""
        if text not in self._said:
            self._said.add(text)
            self._observer.warning(f"{self._what}: {text}")
