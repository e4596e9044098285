"""What a Python caller sees of a run: a progress bar on stderr, and Python warnings."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gaprune.callbacks import Observer
from gaprune.errors import GapruneWarning, in_words_of_the_caller
from gaprune.formatting import percent
from gaprune.records import Generation

LINE_INTERVAL = 10.0  # seconds between lines of progress in a log, and before the first
_SKIPPED = ("gaprune", "contextlib", "functools", "torch")  # packages that no warning points to


class PythonDisplay(Observer):
    """Shows progress with tqdm, in terminals and notebooks, and issues `GapruneWarning`s.

    Without `progress` it issues warnings only. The line that a warning names is the caller's.
    """

    def __init__(self, *, progress: bool = True) -> None:
        self._enabled, self._task = progress, ""
        self._live = sys.stderr.isatty() or _in_notebook()
        self._bar: Any = None

    def phase(self, name: str, detail: str) -> None:
        """Name what begins; a log tells it with the first line of progress."""
        del detail
        if self._live:
            self._show(name, None)

    def generation(self, record: Generation, total: int | None) -> None:
        """Move the bar of the search; it stays at the end."""
        self._move(record.phase, record.generation, total, stays=True)
        if self._bar is not None:
            self._bar.set_postfix_str(f"agreement {percent(record.validation)}", refresh=False)

    def progress(self, what: str, done: float, total: float | None) -> None:
        """Move the bar of a task."""
        self._move(what, done, total)

    def warning(self, text: str) -> None:
        """Issue a `GapruneWarning`; where a filter makes it an error, the run ends."""
        if self._bar is not None and self._live:
            self._bar.clear()
        level = _callers_level()
        warnings.warn(in_words_of_the_caller(text), GapruneWarning, stacklevel=level)

    def close(self) -> None:
        """Remove the bar, except that of a search."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None

    def _move(self, what: str, done: float, total: float | None, *, stays: bool = False) -> None:
        if what != self._task or self._bar is None or self._bar.total != total:
            self._show(what, total, stays=stays)
        if self._bar is not None:
            self._bar.update(done - self._bar.n)

    def _show(self, what: str, total: float | None, *, stays: bool = False) -> None:
        self.close()
        if not self._enabled:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a notebook without ipywidgets gets bars of text
            from tqdm.auto import tqdm  # noqa: PLC0415 - the command line does not need it

        class Bar(tqdm):  # type: ignore[misc]
            """A bar without tqdm's own thread."""

            monitor_interval = 0

        self._task = what
        self._bar = Bar(
            total=total,
            desc=what,
            leave=stays,
            dynamic_ncols=True,
            mininterval=0.1 if self._live else LINE_INTERVAL,
            delay=0 if self._live else LINE_INTERVAL,
            bar_format="{desc} [{elapsed}]" if total is None else None,
        )


def _in_notebook() -> bool:
    """Tell whether this process is a notebook's kernel; others may have imported its package."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _callers_level() -> int:
    """Return the `stacklevel` of the line outside gaprune that called it, for `warnings.warn`.

    It is that of a call in the function that calls this one.
    """
    frame, level = sys._getframe(1), 1  # noqa: SLF001 # inspect.stack() reads source files
    while frame.f_back and str(frame.f_globals.get("__name__")).partition(".")[0] in _SKIPPED:
        frame, level = frame.f_back, level + 1
    return level


@contextmanager
def python_display(*, progress: bool = True) -> Iterator[PythonDisplay]:
    """Return a display that is closed however the block ends."""
    display = PythonDisplay(progress=progress)
    try:
        yield display
    finally:
        display.close()
