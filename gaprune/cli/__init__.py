"""The command `gaprune`: commands, exit codes, one message for what went wrong."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Annotated

import typer
from typer.main import get_command

from gaprune.cli.compare import compare_command
from gaprune.cli.demo import demo_command
from gaprune.cli.doctor import doctor_command
from gaprune.cli.export import export_command
from gaprune.cli.measure import measure_command
from gaprune.cli.prune import prune_command
from gaprune.cli.report import report_command
from gaprune.cli.resume import resume_command
from gaprune.cli.sweep import sweep_command
from gaprune.cli.watch import watch_command
from gaprune.cli.zoo import zoo_command
from gaprune.errors import GapruneError, InputError

DEBUG, DEBUG_VARIABLE = "--debug", "GAPRUNE_DEBUG"

app = typer.Typer(
    name="gaprune",
    no_args_is_help=True,
    rich_markup_mode="markdown",  # rejoins the lines of a docstring's paragraph
    pretty_exceptions_enable=False,  # main() has the last word
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "prune": prune_command,
    "resume": resume_command,
    "compare": compare_command,
    "sweep": sweep_command,
    "export": export_command,
    "measure": measure_command,
    "report": report_command,
    "watch": watch_command,
    "demo": demo_command,
    "zoo": zoo_command,
    "doctor": doctor_command,
}
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)


def _show_version(asked: object) -> None:
    if asked:
        typer.echo(f"gaprune {metadata.version('gaprune')}")
        raise typer.Exit


@app.callback()
def _everywhere(
    *,
    debug: Annotated[  # main() looks for it; here it is explained
        bool, typer.Option(DEBUG, help=f"show the traceback of errors ({DEBUG_VARIABLE}=1 too)")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="print the version", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Prune a pretrained PyTorch network without its training data.

    The weights stay frozen; evolution finds which of them to keep.

    Example: gaprune prune mnist-mlp --sparsity 0.95
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 done; 1 failed; 2 wrong usage or input; 130 and 143 stopped by Ctrl-C and SIGTERM. What went
    wrong is one message on stderr, with a traceback where `--debug` or `GAPRUNE_DEBUG=1` asks.

    Args:
        arguments: the command line without the program's name; None takes it from the process.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a table must not fail for a dash
    try:
        get_command(app).main(arguments, prog_name="gaprune")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except Exception as error:  # noqa: BLE001 - the last resort of a program is here
        if DEBUG in arguments or os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
            traceback.print_exc()
        typer.echo(_message(error), err=True)
        return 2 if isinstance(error, InputError) else 1
    return 0


def _message(error: Exception) -> str:
    if isinstance(error, GapruneError):
        return f"gaprune: error: {error}"
    return (
        f"gaprune: error: {type(error).__name__}: {error} "
        f"(unexpected; gaprune {DEBUG} … shows where)"
    )
