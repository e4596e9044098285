"""Observers: objects that receive the events of a run, such as a progress display."""

from __future__ import annotations

from collections.abc import Callable

from gaprune.errors import InputError, describe, in_words_of_the_caller
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


def _ignore(*_: object) -> None:
    """Stand for a function that the user did not give."""


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
        functions = {
            "on_generation": on_generation,
            "on_phase": on_phase,
            "on_baseline": on_baseline,
            "on_warning": on_warning,
        }
        for name, function in functions.items():
            if function is not None and not callable(function):
                raise InputError(f"{name}: must be a function, got {describe(function)}")
        self._on_generation, self._on_phase = on_generation or _ignore, on_phase or _ignore
        self._on_baseline, self._on_warning = on_baseline or _ignore, on_warning or _ignore

    def phase(self, name: str, detail: str) -> None:
        """Call `on_phase`."""
        self._on_phase(name, detail)

    def baseline(self, name: str, score: BaselineScore) -> None:
        """Call `on_baseline`."""
        self._on_baseline(name, score)

    def generation(self, record: Generation, total: int | None) -> None:
        """Call `on_generation`."""
        del total
        self._on_generation(record)

    def warning(self, text: str) -> None:
        """Call `on_warning`."""
        self._on_warning(text)


def _forward(event: str) -> Callable[..., None]:
    """Return a method that calls the method of the same name of every observer, in order."""

    def forward(group: ObserverGroup, *arguments: object) -> None:
        for observer in group.observers:
            getattr(observer, event)(*arguments)

    return forward


class ObserverGroup(Observer):
    """Forwards every event to several observers, in order."""

    def __init__(self, *observers: Observer) -> None:
        for observer in observers:
            if not isinstance(observer, Observer):
                raise InputError(
                    "observer: must be a gaprune.callbacks.Observer, such as "
                    f"gaprune.callbacks.Callbacks(…), got {describe(observer)}"
                )
        self.observers = observers

    # all events of `Observer`: one that is missing here would be lost
    phase = _forward("phase")
    baseline = _forward("baseline")
    generation = _forward("generation")
    progress = _forward("progress")
    warning = _forward("warning")


class WarnOnce(ObserverGroup):
    """Forwards every event, but no warning twice; `warnings` lists those of the run so far."""

    def __init__(self, observer: Observer) -> None:
        super().__init__(observer)
        # `max_drop` runs many searches of one network, which have the same warnings
        self.warnings: list[str] = []

    @classmethod
    def of(cls, observer: Observer | None) -> WarnOnce:
        """Return an observer that is one already, or wrap it."""
        return observer if isinstance(observer, cls) else cls(observer or Observer())

    def warning(self, text: str) -> None:
        """Forward it the first time, in the words of the caller."""
        text = in_words_of_the_caller(text)
        if text not in self.warnings:
            self.warnings.append(text)
            super().warning(text)


class SubrunObserver(Observer):
    """Observes a run inside a longer one: forwards progress, and every warning once.

    `name` is put before every text. Runs that share the set `warned` do not repeat each other's
    warnings: methods of a comparison often have the same ones.
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
