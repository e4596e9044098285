"""`gaprune export`: write a run in a format of other tools."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from gaprune.choices import EXPORT_FORMATS, listed
from gaprune.cli import common_options as common

FORMAT = "File"


def export_command(  # noqa: PLR0913 # options, each by its own name
    *,
    run: Annotated[str, common.RUN],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="; ".join(f"{name}: {text}" for name, text in EXPORT_FORMATS.items()),
            metavar=listed(EXPORT_FORMATS),
            show_default=False,
            autocompletion=common.completion(EXPORT_FORMATS),
            rich_help_panel=FORMAT,
        ),
    ],
    out: Annotated[
        str | None,
        common.value("folder for the files (default: RUN-FORMAT, beside the run)", "DIR"),
    ] = None,
    overwrite: Annotated[bool, common.switch("--overwrite", "replace an earlier export")] = False,
    strict: Annotated[
        bool,
        common.switch("--strict", "the network before --repair or --compensate", FORMAT),
    ] = False,
    repaired: Annotated[
        bool,
        common.switch("--repaired", "the network after --repair, before --compensate", FORMAT),
    ] = False,
    half: Annotated[
        bool,
        common.switch("--half", "sparse, semi-structured: round kept weights to float16", FORMAT),
    ] = False,
    codebook: Annotated[
        int | None,
        common.value(
            "sparse: number of shared values per layer for kept weights, such as 32",
            "COUNT",
            panel=FORMAT,
        ),
    ] = None,
    no_compress: Annotated[
        bool,
        common.switch(
            "--no-compress", "sparse: no Zstandard compression, so readers do not need it", FORMAT
        ),
    ] = False,
    flush_subnormals: Annotated[
        bool,
        common.switch("--flush-subnormals", "write weights below 1.2e-38 as 0: faster on Intel"),
    ] = False,
    trust_code: Annotated[bool, common.TRUST_CODE] = False,
    as_json: Annotated[bool, common.switch("--json", "print what was written")] = False,
    quiet: Annotated[bool, common.QUIET] = False,
) -> None:
    """Write a pruned network in a format that other tools read.

    Adds a model card (README.md), and prints every file with its size, also relative to the dense
    network's.

    Every file is read back and compared before the folder gets its name: bit for bit, and ONNX in
    ONNX Runtime. A compensated or repaired run is exported so.

    Example: gaprune export runs/mnist-cnn-0.98 --format sparse

    Example: gaprune export runs/mnist-cnn-0.98 --format onnx --out mnist-cnn-onnx
    """
    from gaprune.cli.console import Monitor
    from gaprune.cli.file_tables import show_export
    from gaprune.cli.stop_signals import SignalHandler
    from gaprune.exports import export
    from gaprune.io.serialization import to_json

    folder = out if out is not None else f"{Path(run).expanduser().resolve()}-{form}"
    with SignalHandler("nothing was written"):
        # networks of users may print, but stdout is for results
        with redirect_stdout(sys.stderr), Monitor(quiet=quiet) as monitor:
            monitor.progress(f"exporting to {form}, and reading back", 0, None)
            written = export(
                run,
                form,
                folder,
                overwrite=overwrite,
                strict=strict,
                repaired=repaired,
                half=half,
                codebook=codebook,
                compress=not no_compress,
                flush_subnormals=flush_subnormals,
                trust_code=trust_code,
            )
        if as_json:
            typer.echo(to_json(written.record(), indent=2))
        else:
            show_export(written)
