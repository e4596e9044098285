"""Who is told what happens during a run; consoles and reports implement this."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gaprune.records import BaselineScore, Generation


class Observer(Protocol):
    """Receives the events of a run, in order; none of them may change it."""

    def phase(self, name: str, detail: str) -> None:
        """A part of the run begins, for example `calibration`."""

    def baseline(self, name: str, score: BaselineScore) -> None:
        """A baseline mask was judged on the validation inputs."""

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


class Callbacks(Silence):
    """Calls functions of the user's own; an error that one of them raises ends the run.

    Args:
        on_generation: called with the record of every generation that ends.
        on_phase: called with the name of a part of the run that begins, and words about it.
        on_baseline: called with the name of a one-shot mask, and how it does.
        on_warning: called with a sentence.

    Examples:
        >>> seen = []
        >>> told = Callbacks(on_generation=lambda record: seen.append(record.guard))
        >>> told.generation(Generation(0, 12, 0.5, best=-0.2, mean=-0.3, validation=0.75), total=8)
        >>> seen
        [0.75]
    """

    def __init__(
        self,
        *,
        on_generation: Callable[[Generation], object] | None = None,
        on_phase: Callable[[str, str], object] | None = None,
        on_baseline: Callable[[str, BaselineScore], object] | None = None,
        on_warning: Callable[[str], object] | None = None,
    ) -> None:
        self._on_generation, self._on_phase = on_generation, on_phase
        self._on_baseline, self._on_warning = on_baseline, on_warning

    def phase(self, name: str, detail: str) -> None:
        """Call the function for it."""
        if self._on_phase is not None:
            self._on_phase(name, detail)

    def baseline(self, name: str, score: BaselineScore) -> None:
        """Call the function for it."""
        if self._on_baseline is not None:
            self._on_baseline(name, score)

    def generation(self, record: Generation, total: int | None) -> None:
        """Call the function for it."""
        del total
        if self._on_generation is not None:
            self._on_generation(record)

    def warning(self, text: str) -> None:
        """Call the function for it."""
        if self._on_warning is not None:
            self._on_warning(text)


class Several:
    """Tells several observers everything, one after the other."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def phase(self, name: str, detail: str) -> None:
        """Hand it on."""
        for one in self._observers:
            one.phase(name, detail)

    def baseline(self, name: str, score: BaselineScore) -> None:
        """Hand it on."""
        for one in self._observers:
            one.baseline(name, score)

    def generation(self, record: Generation, total: int | None) -> None:
        """Hand it on."""
        for one in self._observers:
            one.generation(record, total)

    def progress(self, what: str, done: float, total: float | None) -> None:
        """Hand it on."""
        for one in self._observers:
            one.progress(what, done, total)

    def warning(self, text: str) -> None:
        """Hand it on."""
        for one in self._observers:
            one.warning(text)
