"""What people see: progress on stderr while a run goes on, tables on stdout at its end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from gaprune.callbacks import Observer
from gaprune.cli.live import LAST, SearchProgress
from gaprune.config import EVOLVED
from gaprune.evolution.phases import SEARCH
from gaprune.formatting import duration, percent, points
from gaprune.pattern_names import UNSTRUCTURED, WEIGHTS, sparsity_unit
from gaprune.records import BaselineScore, Generation
from gaprune.runs.result import Result

SELDOM = 10.0  # seconds between lines of progress where there is no live bar
SHOWN_LAYERS = 40  # more are summed up in one row


def stdout() -> Console:
    """Where results go; colours only on a terminal, none with NO_COLOR."""
    return Console(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty())


def table(*columns: str, title: str | None = None) -> Table:
    """Return a table without rows: the first column is text, the others are numbers."""
    heading = None if title is None else Text(title)
    made = Table(title=heading, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if index else "left", overflow="fold")
    return made


def add_row(to: Table, cells: Iterable[str], *, strong: bool = False) -> None:
    """Add plain text (square brackets are no markup), in bold where it is what matters."""
    to.add_row(*(Text(cell) for cell in cells), style="bold" if strong else None)


class Monitor(Observer):
    """An observer that shows a run on stderr: a live table on a terminal, else plain lines.

    Args:
        quiet: show warnings only.
        on_phase: called with the name of every phase that begins.
    """

    def __init__(
        self, *, quiet: bool = False, on_phase: Callable[[str], None] | None = None
    ) -> None:
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._live = self._console.file.isatty() and not self._console.is_dumb_terminal
        self._quiet = quiet
        self._on_phase = on_phase
        self._baselines: dict[str, BaselineScore] = {}
        self._progress: SearchProgress | None = None
        self._task = TaskID(0)
        self._waiting = False
        self._first: Generation | None = None
        self._history: tuple[Generation, ...] = ()
        self._said = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Give the terminal back, whatever happened."""
        self.stop_bar()

    def phase(self, name: str, detail: str) -> None:
        """Say in a line what begins."""
        if self._on_phase is not None:
            self._on_phase(name)
        self.stop_bar()
        self._say_baselines()
        self.say(f"{name}: {detail}")
        if self._live and not self._quiet:  # something moves, also where nothing can be counted
            self._move_bar(0, None, name, "", transient=True)
            self._waiting = True

    def baseline(self, name: str, score: BaselineScore) -> None:
        """Remember it; all of them are shown in one line."""
        self._baselines[name] = score

    def generation(self, record: Generation, total: int | None) -> None:
        """Move the bar, or write a line."""
        if self._quiet:
            return
        if self._first is None or self._first.phase != record.phase:
            self._first = record
        if record.generation == 0:
            self._history = ()  # of another search of this run
        self._history = (*self._history[-LAST:], record)
        shown = _progress_texts(record, self._first, total)
        if not self._live:
            self.say("  ".join(shown))
            return
        self._move_bar(record.generation, total, shown[0], "  ".join(shown[1:]))
        if self._progress is not None:
            self._progress.history = self._history

    def progress(self, what: str, done: float, total: float | None) -> None:
        """Move the bar, or write a line every now and then."""
        if self._quiet:
            return
        text = f"{done:g}" + (f" of {total:g}" if total else "") if done else "begins"
        if self._live:
            self._move_bar(done, total, what, text, transient=True)
        elif time.monotonic() - self._said > SELDOM:
            self.say(f"{what}: {text}")

    def warning(self, text: str) -> None:
        """Show it, also where progress is quiet."""
        self._console.print(Text.assemble(("warning: ", "yellow"), text))

    def say(self, text: str) -> None:
        """Write a line of progress."""
        if not self._quiet:
            self._console.print(Text(text))
            self._said = time.monotonic()

    def _say_baselines(self) -> None:
        ranked = sorted(self._baselines.items(), key=lambda one: -one[1].agreement)
        if ranked:
            listing = ", ".join(f"{name} {percent(score.agreement)}" for name, score in ranked)
            self.say(f"baselines agree with the dense network on the validation inputs: {listing}")
        self._baselines.clear()
        self._first = None

    def _move_bar(
        self, done: float, total: float | None, what: str, text: str, *, transient: bool = False
    ) -> None:
        if self._waiting:
            self.stop_bar()
        if self._progress is None:
            self._progress = _make_bar(self._console, transient=transient)
            self._task = self._progress.add_task(what, total=total, completed=done, text=text)  # type: ignore[arg-type] # int in its hints
            self._progress.start()
        self._progress.update(self._task, completed=done, total=total, description=what, text=text)

    def stop_bar(self) -> None:
        """Take the live bar away; the next progress makes a new one."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        self._waiting = False


def _make_bar(console: Console, *, transient: bool) -> SearchProgress:
    return SearchProgress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[text]}", markup=False),
        console=console,
        transient=transient,  # lines of results take its place
        redirect_stdout=False,  # stdout is for results
    )


def _progress_texts(record: Generation, first: Generation, total: int | None) -> list[str]:
    """Generation, phase, best fitness, validation agreement, evaluations per second, time left.

    Generations of the first phase are shorter than those that follow, so they tell no time left.
    """
    speed = record.evaluations / max(record.seconds, 1e-9)
    done = record.generation - first.generation
    texts = [
        f"generation {record.generation}{f'/{total}' if total else ''} ({record.phase})",
        f"best {record.best:.4f}",
        f"validation {percent(record.validation)}",
        f"{speed:,.0f} evaluations/s",
    ]
    if total and done and record.phase == SEARCH:
        left = (record.seconds - first.seconds) / done * (total - record.generation)
        texts.append(f"{duration(left)} left")
    return texts


def show_result(result: Result, console: Console) -> None:
    """Print what was found: layers, methods at the same budget, what was shown to the network."""
    total = result.target.layout.total
    console.print(
        f"[bold]{percent(result.actual_sparsity)}[/] of the {total:,} weights removed, "
        f"{result.kept:,} kept, none of them changed"
    )
    settings = result.settings
    unit = sparsity_unit(settings.get("pattern", UNSTRUCTURED), settings.get("budget", WEIGHTS))
    if unit is not None:
        console.print(f"asked: {percent(result.sparsity)} of the {unit} removed")
    console.print(_layer_table(result))
    console.print(_method_table(result))
    if result.front:
        console.print(_front_table(result))
    if result.trials:
        console.print(_tried_table(result))
    for line in _facts(result):
        console.print(Text(line))


def _layer_table(result: Result) -> Table:
    shown = table("layer", "weights", "kept", "density", title=f"Layers of {result.target.name}")
    layers = result.layers
    for layer in layers[:SHOWN_LAYERS]:
        share = percent(layer.kept / layer.total)
        add_row(shown, [layer.name, f"{layer.total:,}", f"{layer.kept:,}", share])
    rest = layers[SHOWN_LAYERS:]
    if rest:
        weights, kept = sum(one.total for one in rest), sum(one.kept for one in rest)
        name = f"{len(rest)} more"
        add_row(shown, [name, f"{weights:,}", f"{kept:,}", percent(kept / weights)])
    return shown


def _method_table(result: Result) -> Table:
    shown = table(
        "method",
        "agreement on the validation inputs",
        "test accuracy",
        title="Methods at the same budget",
    )
    add_row(shown, ["dense network", percent(1.0), percent(result.dense_accuracy)])
    if result.method == EVOLVED or result.in_loop:
        cells = [result.method, percent(result.validation_agreement), percent(result.accuracy)]
        add_row(shown, cells, strong=True)
    if result.repaired is not None:
        repaired = [percent(result.repaired.validation), percent(result.repaired.accuracy)]
        add_row(shown, [f"{result.method}, repaired", *repaired], strong=True)
    for name, score in ranked(result):
        if result.in_loop and name == result.method:
            continue  # its row after repair is there
        label = f"{name}, repaired" if result.in_loop else name
        cells = [label, percent(score.agreement), percent(score.accuracy)]
        add_row(shown, cells, strong=name == result.method)
    return shown


def ranked(result: Result) -> Sequence[tuple[str, BaselineScore]]:
    """Return the baselines, best on the validation inputs first."""
    return sorted(result.baselines.items(), key=lambda one: -one[1].agreement)


def _front_table(result: Result) -> Table:
    names = list(result.front[0])
    shown = table(*(name.replace("_", " ") for name in names), title="Pareto front")
    for point in result.front:
        add_row(shown, [percent(point[name]) for name in names])
    return shown


def _tried_table(result: Result) -> Table:
    drop = result.settings["max_drop"]
    shown = table(
        *(
            "sparsity",
            "agreement on the validation inputs",
            f"no more than {points(drop)[1:]} lost",
        ),
        title="Searched",
    )
    for one in sorted(result.trials, key=lambda one: float(one["sparsity"])):
        cells = [
            f"{one['sparsity']:g}",
            percent(one["validation"]),
            "yes" if one["within_limit"] else "no",
        ]
        add_row(shown, cells, strong=one["sparsity"] == result.sparsity)
    return shown


def _facts(result: Result) -> list[str]:
    provenance = result.provenance
    sources = "; ".join(provenance.sources)
    lines = [
        f"shown to the network ({provenance.level}): {sources} ({provenance.samples:,} inputs held)",
        f"judged on: {provenance.validation} ({provenance.validation_samples:,} inputs)",
    ]
    lines += _spent(result)
    if result.method == EVOLVED and result.best_baseline is not None:
        both = ", both repaired," if result.in_loop else ""
        lines.append(
            f"margin over the best baseline ({result.best_baseline}){both} on the validation inputs: "
            f"{points(result.gain)}"
        )
        if result.in_loop:
            lines.append("masks were chosen by how they do after repair (--repair-in-loop)")
    if result.accuracy is not None and result.provenance.level != "labelled":
        lines.append("test labels were used for the accuracy above and for nothing else")
    lines.append(
        f"{duration(result.seconds)}, {result.evaluations:,} evaluations, "
        f"seed {result.settings['seed']}; {_ENDINGS[result.stopped]}"
    )
    return lines


def _spent(result: Result) -> list[str]:
    """Return what a budget in multiply-adds or time came to, in words."""
    budget = result.settings.get("budget", WEIGHTS)
    dense, kept = result.macs["dense"], result.macs["kept"]
    if budget == WEIGHTS or dense is None or kept is None:
        return []
    lines = [f"multiply-adds for one input: {dense:,} to {kept:,}, {percent(kept / dense)} of them"]
    found = result.latency
    if found is not None:
        parts = [f"{percent(found['asked'])} asked"]
        if found["predicted"] is not None:
            parts.append(f"{percent(found['predicted'])} predicted")
        measured = found["measured"]
        parts.append("no channel went" if measured is None else f"{percent(measured)} measured")
        lines.append(
            f"latency removed: {', '.join(parts)} ({found['dense_ms']:.3g} ms to "
            f"{found['compact_ms']:.3g} ms in {found['runtime']} at batch {found['batch']}, "
            f"{found['threads']} thread(s); a clock's word, another run may differ; "
            f"--budget-macs {found['budget_macs']} repeats this search)"
        )
    return lines


_ENDINGS = {
    "generations": "the search ended after its generations",
    "evaluations": "the search ended at its limit of evaluations",
    "seconds": "the search ended at its limit of seconds",
    "stagnation": "the search ended because nothing improved",
    "validation": "the search ended because it lost on the validation inputs",
    "interrupted": "the search was interrupted; this is the best so far",
    "one-shot": "nothing was searched",
}
