"""Where the time of a run went, as a table on stderr: progress, not a result."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from gaprune.cli.console import add_row, table
from gaprune.formatting import MISSING
from gaprune.profiling import PARTS, Profile, Timing, Timings

HERE = "this process"


def show_profile(profile: Profile, console: Console | None = None) -> None:
    """Print one line a part, dearest first: workers elsewhere, if any, then this process."""
    if console is None:
        console = Console(file=sys.stderr, highlight=False)
    shown = table(
        "part", "share", "seconds", "calls", "ms/call", "what", title="Where the time went"
    )
    shown.columns[-1].justify, shown.padding = "left", (0, 1, 0, 0)  # words fit in 80 columns
    if profile.worker_count:
        _add(shown, f"{profile.worker_count} workers, together", profile.workers)
        shown.add_section()
    _add(shown, HERE, profile.driver)
    console.print(shown)


def _add(to: Table, whose: str, ledger: Timings) -> None:
    whole = ledger.total
    add_row(to, [whose, *_cells(whole, whole), ""], strong=True)
    for part, one in ledger.slowest_first():
        add_row(to, [f"  {part}", *_cells(one, whole), PARTS[part]])


def _cells(one: Timing, whole: Timing) -> list[str]:
    share = one.nanoseconds / max(1, whole.nanoseconds)
    cells = [f"{100 * share:.1f} %", f"{one.seconds:,.2f}"]
    if not one.calls:
        return [*cells, MISSING, MISSING]
    each = 1e3 * one.seconds / one.calls
    digits = next((n for n, least in enumerate((100, 10, 1)) if each >= least), 3)
    return [*cells, f"{one.calls:,}", f"{each:,.{digits}f}"]
