"""`gaprune doctor`: check that gaprune works on this machine, and say how to mend what does not."""

from __future__ import annotations

from typing import Annotated

import typer

from gaprune.cli import common_options as common


def doctor_command(
    *,
    no_ray: Annotated[
        bool, common.switch("--no-ray", "do not start Ray, which takes seconds", None)
    ] = False,
    as_json: Annotated[bool, common.switch("--json", "print a JSON list of checks", None)] = False,
) -> None:
    """Check that gaprune works on this machine.

    Checks packages, bundled networks, search, Ray and GPU. The exit code is 1 if a check fails.

    Example: gaprune doctor
    """
    from gaprune.cli.console import Monitor, add_row, stdout, table
    from gaprune.cli.machine_checks import CHECKS, FAIL, OK, run_checks
    from gaprune.cli.stop_signals import SignalHandler
    from gaprune.io.serialization import to_json

    selected = {name: check for name, check in CHECKS.items() if not (no_ray and name == "ray")}
    checks = []
    with SignalHandler(), Monitor() as monitor:
        monitor.say("checking this machine takes some seconds")
        for check in run_checks(selected):
            checks.append(check)  # a generator: each check is shown when it is done
            monitor.progress(f"checked: {check.name}", len(checks), None)
    if as_json:
        typer.echo(to_json([vars(check) for check in checks], indent=2))
    else:
        rows = table("", "check", "finding", left=["check", "finding"])
        for check in checks:
            finding = check.finding + (f"\n→ {check.remedy}" if check.remedy else "")
            add_row(rows, [check.status, check.name, finding], strong=check.status != OK)
        stdout().print(rows)
    raise typer.Exit(int(any(check.status == FAIL for check in checks)))
