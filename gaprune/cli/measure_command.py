"""`gaprune measure`: size, multiply-adds, latency and accuracy of weight files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from gaprune.cli import common_options as common
from gaprune.cli.console import Monitor, add_row, stdout, table
from gaprune.cli.stop_signals import SignalHandler
from gaprune.exports.measure import RUNTIMES, FileMeasurement, measure
from gaprune.formatting import MISSING, percent
from gaprune.io.serialization import to_json
from gaprune.models.zoo import ZOO
from gaprune.runs.option_keys import names

MEASUREMENT = "Measurement"


def measure_command(
    *,
    files: Annotated[
        list[str],
        typer.Argument(
            help="safetensors (dense, sparse, masks, prune), ONNX, or a state dict in .pt",
            metavar="FILE...",
            show_default=False,
        ),
    ],
    target: Annotated[
        str | None,
        common.value(
            "the dense network: a target or the folder of a run (default: named in the folder of "
            "the file)",
            "TARGET",
            ZOO,
            panel=MEASUREMENT,
        ),
    ] = None,
    runtimes: Annotated[
        list[str] | None,
        common.value(
            f"of {', '.join(RUNTIMES)}; repeatable, or joined by commas (default: all)",
            "NAME",
            RUNTIMES,
            joined=True,
            panel=MEASUREMENT,
        ),
    ] = None,
    trust_code: Annotated[bool, common.TRUST_CODE] = False,
    as_json: Annotated[bool, common.ROWS] = False,
    quiet: Annotated[bool, common.QUIET] = False,
) -> None:
    """Measure weight files: bytes, multiply-adds, latency, agreement.

    Prints a table of the files, a table of their latencies, and what could not be measured.

    Latency is the median of many passes at batch sizes 1 and 64, in turn with the dense network in
    the same runtime (for torch-csr, in torch). Runtimes that multiply by zeros gain no speed from
    sparsity, however small the file is: a line says so.

    Example: gaprune measure runs/mnist-cnn-0.98/pruned.safetensors

    Example: gaprune measure sparse/model.safetensors dense/model.safetensors --runtimes torch
    """
    chosen = names(runtimes, "runtimes") if runtimes else None
    with SignalHandler("nothing was written"):
        # networks of users may print, but stdout is for results
        with redirect_stdout(sys.stderr), Monitor(quiet=quiet) as monitor:
            measurements = measure(
                *files, target=target, runtimes=chosen, observer=monitor, trust_code=trust_code
            )
        if as_json:
            typer.echo(to_json([item.record() for item in measurements], indent=2))
        else:
            _show(measurements)


def _show(measurements: Sequence[FileMeasurement]) -> None:
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
    "bytes after zstd": lambda item: _count(item.zstd_bytes),
    "parameters": lambda item: _count(item.parameters),
    "nonzero parameters": lambda item: _count(item.nonzeros),
    "multiply-adds": lambda item: _count(item.macs and item.macs.total),
    "nonzero multiply-adds": lambda item: _count(item.macs and item.macs.nonzero),
    "agreement": lambda item: percent(item.agreement),
    "accuracy": lambda item: percent(item.accuracy),
    "measured on": lambda item: item.compared_on or MISSING,
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
