"""`gaprune doctor`: does it work here?"""

from __future__ import annotations

from typing import Annotated

import typer

from gaprune.cli.checks import CHECKS, FAIL, OK, Check, examine
from gaprune.cli.console import Monitor, add_row, stdout, table
from gaprune.cli.signal_handling import SignalHandler
from gaprune.io.serialization import to_json


def doctor_command(
    *,
    no_ray: Annotated[
        bool, typer.Option("--no-ray", help="leave out starting Ray, which takes seconds")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print a list of checks")] = False,
) -> None:
    """Check that gaprune works on this machine.

    Packages, network, search, Ray, GPU. The exit code is 1 where something is broken.

    Example: gaprune doctor
    """
    with SignalHandler(), Monitor() as monitor:
        monitor.say("examining this machine, some seconds")
        wanted = {name: check for name, check in CHECKS.items() if not (no_ray and name == "ray")}
        checks = []
        for check in examine(wanted):
            checks.append(check)
            monitor.progress(f"examined: {check.name}", len(checks), None)
    if as_json:
        typer.echo(to_json([vars(check) for check in checks], indent=2))
    else:
        _show(checks)
    raise typer.Exit(int(any(check.status == FAIL for check in checks)))


def _show(checks: list[Check]) -> None:
    shown = table("", "check", "found")
    for column in shown.columns:
        column.justify = "left"
    for check in checks:
        found = check.found + (f"\n→ {check.way_out}" if check.way_out else "")
        add_row(shown, [check.status, check.name, found], strong=check.status != OK)
    stdout().print(shown)
