"""`gaprune measure`: size, multiply-adds, latency and accuracy of weight files."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer

from gaprune.choices import RUNTIMES, ZOO
from gaprune.cli import common_options as common
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
    from gaprune.cli.console import Monitor
    from gaprune.cli.file_tables import show_measurements
    from gaprune.cli.stop_signals import SignalHandler
    from gaprune.exports.measure import measure
    from gaprune.io.serialization import to_json

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
            show_measurements(measurements)
