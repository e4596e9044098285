"""`gaprune measure`: what files of weights cost and do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from gaprune.cli import common_options as outputs
from gaprune.cli.comparison_table import WIDEST
from gaprune.cli.completion import among
from gaprune.cli.console import Monitor, add_row, stdout, table
from gaprune.cli.signal_handling import SignalHandler
from gaprune.export.measure import RUNTIMES, FileMeasurement, measure
from gaprune.formatting import MISSING, percent
from gaprune.io.serialization import to_json
from gaprune.models.zoo import ZOO
from gaprune.runs.option_keys import names

HOW = "How"


def measure_command(
    *,
    files: Annotated[
        list[str],
        typer.Argument(
            help="safetensors (dense, sparse, masks, prune), ONNX, or a state dict as .pt",
            metavar="FILE...",
            show_default=False,
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(
            help="the dense network: a target's name or the folder of a run (default: what the "
            "folder of the file says)",
            metavar="TARGET",
            autocompletion=among(ZOO),
            show_default=False,
            rich_help_panel=HOW,
        ),
    ] = None,
    runtimes: Annotated[
        list[str] | None,
        typer.Option(
            help=f"of {', '.join(RUNTIMES)}; repeatable, or joined by commas (default: all)",
            metavar="NAME",
            autocompletion=among(RUNTIMES, joined=True),
            show_default=False,
            rich_help_panel=HOW,
        ),
    ] = None,
    as_json: Annotated[bool, outputs.ROWS] = False,
    quiet: Annotated[bool, outputs.QUIET] = False,
) -> None:
    """Measure files of weights: bytes, work, latency, agreement.

    Prints a table of the files and one of their latencies, and what could not be measured.

    Latency is the median of many passes at batch 1 and 64, in turn with the dense network in the
    same runtime; of torch-csr, with the dense network in torch. A line says so where sparsity
    gives no speed-up: runtimes that multiply by zeros do all the work, whatever the file saves.

    Example: gaprune measure runs/mnist-cnn-0.98/pruned.safetensors

    Example: gaprune measure sparse/model.safetensors dense/model.safetensors --runtimes torch
    """
    chosen = None if not runtimes else names(runtimes, "runtimes")
    with SignalHandler("nothing was written"):
        # a factory file may print
        with redirect_stdout(sys.stderr), Monitor(quiet=quiet) as monitor:
            found = measure(*files, target=target, runtimes=chosen, observer=monitor)
        if as_json:
            typer.echo(to_json([one.record() for one in found], indent=2))
        else:
            _show(found)


def _show(found: Sequence[FileMeasurement]) -> None:
    console = stdout()
    if not console.is_terminal:
        console.width = WIDEST  # names of files are not cut apart
    shown = table("", *(one.file for one in found))
    for label, cell in _ROWS.items():
        add_row(shown, [label, *(cell(one) for one in found)])
    console.print(shown)
    for one in found:
        _show_latency(one, console)
    for one in found:
        for name, why in one.timed.missing.items():
            console.print(Text(f"{one.file}: {name}: not measured ({why})"))
        for line in one.said:
            console.print(Text(f"{one.file}: {line}"))


def _count(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}"


_ROWS: dict[str, Callable[[FileMeasurement], str]] = {
    "kind": lambda one: one.kind,
    "bytes": lambda one: _count(one.bytes),
    "bytes after zstd": lambda one: _count(one.zstd_bytes),
    "parameters": lambda one: _count(one.parameters),
    "of them not 0": lambda one: _count(one.nonzeros),
    "multiply-adds": lambda one: _count(one.work and one.work.all),
    "of them not by 0": lambda one: _count(one.work and one.work.nonzero),
    "agreement": lambda one: percent(one.agreement),
    "accuracy": lambda one: percent(one.accuracy),
    "measured on": lambda one: one.compared_on or MISSING,
}


def _show_latency(one: FileMeasurement, console: Console) -> None:
    batches = list(dict.fromkeys(batch for by in one.timed.pruned.values() for batch in by))
    if not batches:
        return
    threads = "1 thread" if one.threads == 1 else f"{one.threads} threads"
    title = f"{one.file}: milliseconds of one pass, median, {threads}"
    heads = (f"{who}batch {batch}" for batch in batches for who in ("", "dense, "))
    shown = table("runtime", *heads, title=title)
    for name, own in one.timed.pruned.items():
        dense = one.timed.dense.get(name, {})
        cells = (ms for batch in batches for ms in (own.get(batch), dense.get(batch)))
        add_row(shown, [name, *(MISSING if ms is None else f"{ms:.3f}" for ms in cells)])
    console.print(shown)
