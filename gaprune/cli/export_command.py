"""`gaprune export`: from a run to files that others read."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from gaprune.cli import common_options as outputs
from gaprune.cli.completion import among
from gaprune.cli.console import Monitor, add_row, stdout, table
from gaprune.cli.signal_handling import SignalHandler
from gaprune.export import EXPORTERS, ExportResult, export
from gaprune.formatting import percent
from gaprune.io.serialization import to_json

FORMAT = "File"


def export_command(  # noqa: PLR0913 # options, each by its own name
    *,
    run: Annotated[
        str, typer.Argument(help="folder of the run", metavar="RUN", show_default=False)
    ],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="; ".join(f"{name}: {one.description}" for name, one in EXPORTERS.items()),
            metavar="FORMAT",
            show_default=False,
            autocompletion=among(EXPORTERS),
            rich_help_panel=FORMAT,
        ),
    ],
    out: Annotated[
        str | None, outputs.folder("folder for the files (default: RUN-FORMAT, beside the run)")
    ] = None,
    overwrite: Annotated[bool, outputs.overwrite("replace an earlier export")] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="the network as it was before --repair, where the run repaired it",
            rich_help_panel=FORMAT,
        ),
    ] = False,
    half: Annotated[
        bool,
        typer.Option(
            "--half",
            help="sparse, semi-structured: round the weights that stay to float16",
            rich_help_panel=FORMAT,
        ),
    ] = False,
    codebook: Annotated[
        int | None,
        typer.Option(
            help="sparse: so many shared values per layer for the weights that stay, such as 32",
            metavar="COUNT",
            show_default=False,
            rich_help_panel=FORMAT,
        ),
    ] = None,
    no_compress: Annotated[
        bool,
        typer.Option(
            "--no-compress",
            help="sparse: without Zstandard, which reading then does not need either",
            rich_help_panel=FORMAT,
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="print what was written", rich_help_panel=outputs.OUTPUT),
    ] = False,
    quiet: Annotated[bool, outputs.QUIET] = False,
) -> None:
    """Write a pruned network in a format that other tools read.

    Its card (README.md) lies beside it; prints every file with its size and its part of the dense
    one's.

    Every file is read back and compared before the folder takes its name: bit for bit, and ONNX
    in ONNX Runtime. A run that was repaired is exported repaired.

    Example: gaprune export runs/mnist-cnn-0.98 --format sparse

    Example: gaprune export runs/mnist-cnn-0.98 --format onnx --out mnist-cnn-onnx
    """
    place = out if out is not None else f"{Path(run).expanduser().resolve()}-{form}"
    with SignalHandler("nothing was written"):
        # a factory file may print
        with redirect_stdout(sys.stderr), Monitor(quiet=quiet) as monitor:
            monitor.progress(f"export {form}, and reading back", 0, None)
            written = export(
                run,
                form,
                place,
                overwrite=overwrite,
                strict=strict,
                half=half,
                codebook=codebook,
                compress=not no_compress,
            )
        if as_json:
            typer.echo(to_json(written.record(), indent=2))
        else:
            _show(written)


def _show(written: ExportResult) -> None:
    shown = table("file", "bytes", "of dense")
    for name, size in written.files.items():
        add_row(shown, [name, f"{size:,}", percent(size / written.dense_bytes)])
    if len(written.files) > 1:
        cells = ["all", f"{written.bytes:,}", percent(written.bytes / written.dense_bytes)]
        add_row(shown, cells, strong=True)
    stdout().print(shown)
    stdout().print(f"read back and compared; written to {written.path}", markup=False)
