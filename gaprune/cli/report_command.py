"""`gaprune report`: the page of a run or a comparison, made anew."""

from __future__ import annotations

import webbrowser
from typing import Annotated

import typer

from gaprune.cli import common_options as outputs
from gaprune.cli.console import Monitor
from gaprune.comparison.comparison_report import make_report
from gaprune.io.serialization import to_json


def report_command(
    *,
    run: Annotated[
        str,
        typer.Argument(
            help="folder of a run, or of a comparison", metavar="RUN", show_default=False
        ),
    ],
    show: Annotated[
        bool,
        typer.Option("--open", help="open it in the browser", rich_help_panel=outputs.OUTPUT),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="print where it is as JSON", rich_help_panel=outputs.OUTPUT),
    ] = False,
) -> None:
    """Make report.html of a run or a comparison anew.

    Every run and comparison makes one at its end; this makes it anew, for example of a run by an
    older gaprune: what that did not write down is left out. The page is one file that needs no
    network: send it, print it, read it on a phone.

    Example: gaprune report runs/mnist-mlp-0.95

    Example: gaprune report runs/compare-mnist-mlp --open
    """
    with Monitor() as monitor:
        monitor.progress("drawing the page", 0, None)
        page = make_report(run)
    if as_json:
        typer.echo(to_json({"report": str(page), "bytes": page.stat().st_size}, indent=2))
    else:
        typer.echo(f"written to {page}")
    if show:
        webbrowser.open(page.as_uri())
