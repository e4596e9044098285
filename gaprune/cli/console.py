"""What users see: progress on stderr during a run, tables on stdout at its end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from typing import Self

from rich import box
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from gaprune.callbacks import Observer
from gaprune.cli.stop_signals import SignalHandler
from gaprune.errors import in_words_of_the_caller
from gaprune.evolution.search_plan import SEARCH
from gaprune.formatting import duration, percent
from gaprune.records import BaselineScore, Generation

LINE_INTERVAL = 10.0  # seconds between lines of progress where there is no live bar
LAST = 8  # generations in the live table
BARS = "▁▂▃▄▅▆▇█"
WIDEST = 1000  # columns of output to a file or a pipe: nothing there needs to wrap


def stdout(*, wide: bool = False) -> Console:
    """Return the console for results; it is coloured only on a terminal, and not with NO_COLOR.

    With `wide`, files and pipes get lines of any length.
    """
    console = Console(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty())
    if wide and not console.is_terminal:
        console.width = WIDEST
    return console


def table(*columns: str, title: str | None = None, left: Sequence[str] = ()) -> Table:
    """Return a table without rows: the first column and those `left` are text, others numbers."""
    heading = None if title is None else Text(title)
    empty = Table(title=heading, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        is_text = not index or column in left
        empty.add_column(column, justify="left" if is_text else "right", overflow="fold")
    return empty


def add_row(rows: Table, cells: Iterable[str], *, strong: bool = False) -> None:
    """Add plain text (square brackets are not markup), in bold if it is the important row."""
    rows.add_row(*(Text(cell) for cell in cells), style="bold" if strong else None)


def generation_table(history: Sequence[Generation], last: int = LAST) -> Table:
    """Return the last generations, newest at the bottom, the best on validation in bold."""
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    fitness, sign = fitness_sign(history)
    for name in ("generation", fitness, f"mean {fitness}", "agreement", "evaluations", "seconds"):
        rows.add_column(name, justify="right", no_wrap=True)
    top = max((record.validation for record in history), default=0.0)
    for record in history[-last:]:
        cells = [
            f"{record.generation}",
            f"{sign * record.best:.4f}",
            f"{sign * record.mean:.4f}",
            percent(record.validation),
            f"{record.evaluations:,}",
            f"{record.seconds:,.1f}",
        ]
        add_row(rows, cells, strong=record.validation == top)
    return rows


def fitness_sign(history: Sequence[Generation]) -> tuple[str, int]:
    """Return the name of the fitness, and the sign with which it is shown.

    An objective that counts answers is above 0 and better if it is high; the others are negated
    losses, and people expect a loss to be above 0 and better if it is low.
    """
    is_loss = all(record.best <= 0 for record in history)
    return ("loss", -1) if is_loss else ("score", 1)


def sparkline(values: Sequence[float], width: int = 32) -> str:
    """Return the last `width` values as a row of bars, scaled from the smallest to the largest."""
    recent = list(values)[-width:]
    # of equal values every bar is the lowest: there is no range to scale to
    low, high = min(recent, default=0.0), max(recent, default=0.0)
    step = (high - low) / (len(BARS) - 1)
    return "".join(BARS[round((value - low) / step) if step else 0] for value in recent)


class SearchProgress(Progress):
    """A progress bar with the last generations above it."""

    history: tuple[Generation, ...] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return the table, then the bar."""
        if self.history:
            yield generation_table(self.history)
        yield from super().get_renderables()


class Monitor(Observer):
    """An observer that shows a run on stderr: a live table on a terminal, otherwise plain lines.

    Args:
        quiet: show warnings only.
        signals: is told of every phase, and checked in every generation.
    """

    def __init__(self, *, quiet: bool = False, signals: SignalHandler | None = None) -> None:
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._live = self._console.file.isatty() and not self._console.is_dumb_terminal
        self._quiet, self._signals = quiet, signals or SignalHandler()
        self._baselines: dict[str, BaselineScore] = {}
        self._progress: SearchProgress | None = None
        self._task = TaskID(0)
        self._is_phase_bar = False  # the bar only shows that a phase has begun
        self._first: Generation | None = None  # of the phase, after the initial population
        self._history: tuple[Generation, ...] = ()
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the terminal, also after an error."""
        self.stop_bar()

    def phase(self, name: str, detail: str) -> None:
        """Print what begins."""
        self._signals.phase(name)
        self.stop_bar()
        if self._baselines:
            best = max(self._baselines, key=lambda name: self._baselines[name].agreement)
            agreed = percent(self._baselines[best].agreement)
            self.say(f"best of {len(self._baselines)} one-shot masks: {best}, agreement {agreed}")
        self._baselines.clear()
        self._first = None  # phases differ in speed, so the time left is predicted within one
        self.say(f"{name}: {detail}")
        if self._live and not self._quiet:  # a moving spinner, even if nothing can be counted
            self._move_bar(0, None, name, "", transient=True)
            self._is_phase_bar = True

    def baseline(self, name: str, score: BaselineScore) -> None:
        """Keep it; the next phase prints the best of them."""
        self._baselines[name] = score

    def generation(self, record: Generation, total: int | None) -> None:
        """Move the bar, or print a line."""
        self._signals.check()
        if self._quiet:
            return
        # the first generation of a search is slower than the others: it draws most of the batches
        # that gradient steps reuse
        if self._first is None or self._first.phase != record.phase or not self._first.generation:
            self._first = record
        # --max-drop runs several searches: each begins with generation 0
        if record.generation == 0:
            self._history = ()
        self._history = (*self._history[-LAST:], record)
        title, *figures = _progress_texts(record, self._first, total, brief=self._live)
        if not self._live:  # a log: every generation stays readable
            self.say("  ".join([title, *figures]))
            return
        bar = self._move_bar(record.generation, total, title, "  ".join(figures))
        bar.history = self._history

    def progress(self, what: str, done: float, total: float | None) -> None:
        """Move the bar, or print a line every `LINE_INTERVAL` seconds: logs must stay short."""
        if self._quiet:
            return
        text = f"{done:g}" + (f" of {total:g}" if total else "") if done else "begins"
        if self._live:
            self._move_bar(done, total, what, text, transient=True)
        elif time.monotonic() - self._last_line > LINE_INTERVAL:
            self.say(f"{what}: {text}")

    def warning(self, text: str) -> None:
        """Print it, even if progress is quiet."""
        self._console.print(Text.assemble(("warning: ", "yellow"), in_words_of_the_caller(text)))

    def say(self, text: str) -> None:
        """Print a line of progress."""
        if not self._quiet:
            self._console.print(Text(text))
            self._last_line = time.monotonic()

    def stop_bar(self) -> None:
        """Remove the live bar; the next progress creates a new one."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        self._is_phase_bar = False

    def _move_bar(
        self, done: float, total: float | None, what: str, text: str, *, transient: bool = False
    ) -> SearchProgress:
        if self._is_phase_bar:  # its spinner has no total; this progress may have one
            self.stop_bar()
        bar = self._progress
        if bar is None:
            bar = self._progress = SearchProgress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=16),
                TextColumn("{task.fields[text]}", markup=False),
                console=self._console,
                transient=transient,
                redirect_stdout=False,  # stdout is for results
            )
            self._task = bar.add_task(what, total=total, text=text)
            bar.start()
        bar.update(self._task, completed=done, total=total, description=what, text=text)
        return bar


def _progress_texts(
    record: Generation, first: Generation, total: int | None, *, brief: bool
) -> list[str]:
    """Return generation, agreement, best fitness, speed, and for the search the time left.

    With `brief`, the meaning of the fitness is left out, so that the line fits 80 columns.
    """
    name, sign = fitness_sign([record])
    meaning = " (lower is better)" if sign < 0 and not brief else ""
    texts = [
        f"generation {record.generation}{f'/{total}' if total else ''} ({record.phase})",
        f"agreement {percent(record.validation)}",
        f"{name} {sign * record.best:.4f}{meaning}",
        f"{record.evaluations / max(record.seconds, 1e-9):,.0f} evaluations/s",
    ]
    if (left := seconds_left((first, record), total)) is not None:
        texts.append(f"{duration(left)} left")
    return texts


def seconds_left(history: Sequence[Generation], total: int | None) -> float | None:
    """Predict the seconds until generation `total`, or None where nothing predicts them.

    Generations of earlier phases are shorter, and the first one of the search is longer: it draws
    most of the batches that gradient steps reuse. So the time between the end of the first and the
    last generation of the search counts.
    """
    last = history[-1]
    searched = [r for r in history if r.generation and r.phase == SEARCH]
    if not total or last not in searched or searched[0] is last:
        return None
    done = last.generation - searched[0].generation
    return (last.seconds - searched[0].seconds) / done * (total - last.generation)
