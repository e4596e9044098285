"""Generations as a table on the screen: of the run that goes on here, or of another one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import RenderableType
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from gaprune.records import Generation

LAST = 8  # generations that are shown
BARS = "▁▂▃▄▅▆▇█"
HEAD = ("generation", "best", "mean", "validation", "evaluations", "seconds")


def generation_table(history: Sequence[Generation], last: int = LAST) -> Table:
    """Return the last generations, the newest below; what leads on the validation inputs is bold."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in HEAD:
        shown.add_column(name, justify="right", no_wrap=True)
    top = max((one.validation for one in history), default=0.0)
    for one in history[-last:]:
        cells = [
            f"{one.generation}",
            f"{one.best:.4f}",
            f"{one.mean:.4f}",
            f"{100 * one.validation:.2f} %",
            f"{one.evaluations:,}",
            f"{one.seconds:,.1f}",
        ]
        shown.add_row(*map(Text, cells), style="bold" if one.validation == top else None)
    return shown


def sparkline(values: Sequence[float], width: int = 32) -> str:
    """Return values as a row of bars, the last `width` of them, from the least to the largest."""
    held = list(values)[-width:]
    if not held:
        return ""
    low, high = min(held), max(held)
    step = (high - low) / (len(BARS) - 1)
    return "".join(BARS[round((one - low) / step) if step else 0] for one in held)


class SearchProgress(Progress):
    """A progress bar with the last generations above it."""

    history: tuple[Generation, ...] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return the table, then the bar."""
        if self.history:
            yield generation_table(self.history)
        yield from super().get_renderables()
