"""`gaprune report`: create report.html of a run or a comparison again."""

from __future__ import annotations

import webbrowser
from typing import Annotated

import typer

from gaprune.cli import common_options as common


def report_command(
    *,
    run: Annotated[
        str, typer.Argument(help="folder of a run or comparison", metavar="RUN", show_default=False)
    ],
    show: Annotated[bool, common.switch("--open", "open it in the browser")] = False,
    as_json: Annotated[bool, common.switch("--json", "print its path as JSON")] = False,
) -> None:
    """Create report.html of a run or a comparison again.

    Every run and comparison creates one at its end. Use this command after an update of gaprune;
    what an older version did not record is left out. The page is one file that needs no network.

    Example: gaprune report runs/mnist-mlp-0.95

    Example: gaprune report runs/compare-mnist-mlp --open
    """
    from gaprune.cli.console import Monitor
    from gaprune.comparison.comparison_report import make_report
    from gaprune.io.serialization import to_json

    with Monitor() as monitor:
        monitor.progress("drawing the page", 0, None)
        page = make_report(run)
    if as_json:
        typer.echo(to_json({"report": str(page), "bytes": page.stat().st_size}, indent=2))
    else:
        typer.echo(f"written to {page}")
    if show:  # last: the path is printed even if there is no browser
        webbrowser.open(page.as_uri())
