"""Tables of weight files: what an export wrote, and what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.text import Text

from gaprune.cli.console import add_row, stdout, table
from gaprune.exports import ExportResult
from gaprune.exports.measure import FileMeasurement
from gaprune.formatting import MISSING, percent


def show_export(written: ExportResult) -> None:
    """Print every file with its size, also relative to the dense network's."""
    rows = table("file", "bytes", "of dense")
    for name, size in written.files.items():
        add_row(rows, [name, f"{size:,}", percent(size / written.dense_bytes)])
    if len(written.files) > 1:  # the sum of one file is that file
        cells = ["all", f"{written.bytes:,}", percent(written.bytes / written.dense_bytes)]
        add_row(rows, cells, strong=True)
    stdout().print(rows)
    scores = f"agreement with the dense network: {percent(written.agreement)} "
    scores += f"on {written.compared_on}"
    if written.accuracy is not None:
        scores += f"; test accuracy in the run: {percent(written.accuracy)}"
    stdout().print(scores, markup=False)
    stdout().print(f"read back and compared; written to {written.path}", markup=False)


def show_measurements(measurements: Sequence[FileMeasurement]) -> None:
    """Print the files, their latencies, and what could not be measured."""
    console = stdout(wide=True)  # file names are not wrapped
    rows = table("", *(item.file for item in measurements))
    for label, cell in _ROWS.items():
        add_row(rows, [label, *map(cell, measurements)])
    console.print(rows)
    for item in measurements:
        _show_latency(item, console)
    for item in measurements:
        missing = [f"{name}: not measured ({why})" for name, why in item.timed.missing.items()]
        for line in (*missing, *item.remarks):
            console.print(Text(f"{item.file}: {line}"))


# FileMeasurement leaves out what a kind of file does not have: None becomes a dash
def _count(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}"


_ROWS: dict[str, Callable[[FileMeasurement], str]] = {
    "kind": lambda item: item.kind,
    "bytes": lambda item: _count(item.bytes),
    "bytes of the whole export": lambda item: _count(item.export_bytes),
    "bytes after zstd": lambda item: _count(item.zstd_bytes),
    "parameters": lambda item: _count(item.parameters),
    "nonzero parameters": lambda item: _count(item.nonzeros),
    "subnormal parameters": lambda item: _count(item.subnormals),
    "multiply-adds": lambda item: _count(item.macs and item.macs.total),
    "nonzero multiply-adds": lambda item: _count(item.macs and item.macs.nonzero),
    "agreement with the dense network": lambda item: percent(item.agreement),
    "accuracy": lambda item: percent(item.accuracy),
    "both measured on": lambda item: item.compared_on or MISSING,
}


def _show_latency(item: FileMeasurement, console: Console) -> None:
    timed = item.timed
    # runtimes may have timed different batch sizes: the columns are all of them, in order
    batches = list(dict.fromkeys(batch for times in timed.pruned.values() for batch in times))
    if not batches:
        return
    threads = "1 thread" if item.threads == 1 else f"{item.threads} threads"
    heads = (f"{network}batch {batch}" for batch in batches for network in ("", "dense, "))
    rows = table("runtime", *heads, title=f"{item.file}: median milliseconds per pass, {threads}")
    for runtime, pruned in timed.pruned.items():
        dense = timed.dense.get(runtime, {})
        cells = (times.get(batch) for batch in batches for times in (pruned, dense))
        add_row(rows, [runtime, *(MISSING if ms is None else f"{ms:.3f}" for ms in cells)])
    console.print(rows)
