"""`gaprune demo`: prune a bundled network and print the table of the README."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import typer

from gaprune.cli import common_options as common

FAST = {"generations": 2}


def demo_command(
    *,
    fast: Annotated[bool, common.switch("--fast", "fewer generations", None)] = False,
    seed: Annotated[int, typer.Option(help="of all random choices", min=0, metavar="INT")] = 0,
    no_save: Annotated[bool, common.NO_SAVE] = False,
    as_json: Annotated[bool, common.ROWS] = False,
    quiet: Annotated[bool, common.QUIET] = False,
) -> None:
    """Prune a real network to 2 % of its weights without data.

    Prints the accuracy of gaprune and of the usual methods. Takes one to two minutes. The run with
    the higher sparsity is saved with its report in a new folder in runs/.

    Example: gaprune demo
    """
    from gaprune.cli.console import Monitor
    from gaprune.cli.demo_run import SPARSITIES, TARGET, run_demo, show_demo
    from gaprune.cli.stop_signals import SignalHandler
    from gaprune.io.run_files import REPORT
    from gaprune.io.serialization import to_json
    from gaprune.runs.job import make_job
    from gaprune.runs.open_directory import open_numbered_run

    settings = {"seed": seed, **(FAST if fast else {})}
    with ExitStack() as stack:
        directory = (
            None if no_save else stack.enter_context(open_numbered_run(common.RUNS / "demo"))
        )
        signals = stack.enter_context(SignalHandler())
        monitor = stack.enter_context(Monitor(quiet=quiet, signals=signals))
        demo = run_demo(monitor, settings)
        if directory is not None:
            job = make_job({"target": TARGET, "sparsity": SPARSITIES[-1], **settings})
            directory.save(demo.results[-1], job)
    if as_json:
        typer.echo(to_json(demo.rows(), indent=2))
    else:
        show_demo(demo, None if directory is None else directory.path / REPORT)
