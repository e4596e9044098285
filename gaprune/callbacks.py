"""Observers: objects that receive the events of a run, such as a progress display."""

from __future__ import annotations

from collections.abc import Callable

from gaprune.records import BaselineScore, Generation


class Observer:
    """Receives the events of a run in order and ignores them; subclasses override what they need.

    An observer must not change the run. An error that it raises ends the run.
    """

    def phase(self, name: str, detail: str) -> None:
        """A part of the run begins, for example `calibration`; `detail` describes it."""

    def baseline(self, name: str, score: BaselineScore) -> None:
        """A one-shot mask was scored on the validation inputs."""

    def generation(self, record: Generation, total: int | None) -> None:
        """A generation ended; `total` is the planned number, or None without a limit."""

    def progress(self, what: str, done: float, total: float | None) -> None:
        """A long task `what` has finished `done` of `total` units (None: unknown)."""

    def warning(self, text: str) -> None:
        """Something the user should know, as a sentence."""


class Callbacks(Observer):
    """Calls the user's functions; an error that one of them raises ends the run.

    Args:
        on_generation: called with the record of every finished generation.
        on_phase: called with name and description of every part of the run that begins.
        on_baseline: called with the name of every one-shot mask and its score.
        on_warning: called with a sentence.

    Examples:
        >>> agreements = []
        >>> callbacks = Callbacks(on_generation=lambda record: agreements.append(record.validation))
        >>> record = Generation(0, 12, 0.5, best=-0.2, mean=-0.3, validation=0.75)
        >>> callbacks.generation(record, total=8)
        >>> agreements
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
        """Call `on_phase`."""
        if self._on_phase is not None:
            self._on_phase(name, detail)

    def baseline(self, name: str, score: BaselineScore) -> None:
        """Call `on_baseline`."""
        if self._on_baseline is not None:
            self._on_baseline(name, score)

    def generation(self, record: Generation, total: int | None) -> None:
        """Call `on_generation`."""
        del total
        if self._on_generation is not None:
            self._on_generation(record)

    def warning(self, text: str) -> None:
        """Call `on_warning`."""
        if self._on_warning is not None:
            self._on_warning(text)


class ObserverGroup(Observer):
    """Forwards every event to several observers, in order."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def phase(self, name: str, detail: str) -> None:
        """Forward it."""
        for observer in self._observers:
            observer.phase(name, detail)

    def baseline(self, name: str, score: BaselineScore) -> None:
        """Forward it."""
        for observer in self._observers:
            observer.baseline(name, score)

    def generation(self, record: Generation, total: int | None) -> None:
        """Forward it."""
        for observer in self._observers:
            observer.generation(record, total)

    def progress(self, what: str, done: float, total: float | None) -> None:
        """Forward it."""
        for observer in self._observers:
            observer.progress(what, done, total)

    def warning(self, text: str) -> None:
        """Forward it."""
        for observer in self._observers:
            observer.warning(text)


class WarnOnce(ObserverGroup):
    """Forwards every event, but no warning twice: `max_drop` runs many searches of one network."""

    def __init__(self, observer: Observer) -> None:
        super().__init__(observer)
        self._warned: set[str] = set()

    def warning(self, text: str) -> None:
        """Forward it the first time."""
        if text not in self._warned:
            self._warned.add(text)
            super().warning(text)


class SubrunObserver(Observer):
    """Observes a run inside a longer one: forwards progress, and every warning once.

    Args:
        observer: of the longer run.
        name: of this run, put before every text.
        warned: warnings given so far; runs that share the set do not repeat each other's.
    """

    def __init__(self, observer: Observer, name: str, warned: set[str] | None = None) -> None:
        self._observer, self._name = observer, name
        self._warned = set() if warned is None else warned

    def generation(self, record: Generation, total: int | None) -> None:
        """Report it as progress."""
        self._observer.progress(f"{self._name}, generation", record.generation, total)

    def progress(self, what: str, done: float, total: float | None) -> None:
        """Forward it."""
        self._observer.progress(f"{self._name}, {what}", done, total)

    def warning(self, text: str) -> None:
        """Forward it the first time."""
        if text not in self._warned:
            self._warned.add(text)
            self._observer.warning(f"{self._name}: {text}")
