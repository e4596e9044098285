"""The command `gaprune`: commands, exit codes, one message for what went wrong."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module, metadata
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand
from typer.main import get_command

from gaprune.errors import GapruneError, InputError

DEBUG, DEBUG_VARIABLE = "--debug", "GAPRUNE_DEBUG"
MARKUP: Final = "markdown"  # rejoins the lines of a docstring's paragraph
COMMANDS: dict[str, str] = {
    "prune": "Prune a pretrained network without its training data.",
    "resume": "Go on with a run that was stopped: Ctrl-C, a crash, a power cut.",
    "compare": "Compare the evolved mask with every other method, tuned or not.",
    "sweep": "Move one number over a range and see where the network breaks.",
    "export": "Write a pruned network in a format that other tools read.",
    "measure": "Measure files of weights: bytes, work, latency, agreement.",
    "report": "Make report.html of a run or a comparison anew.",
    "watch": "Show how far a run is, until it ends.",
    "demo": "Prune a real network to 2 % of its weights without data.",
    "zoo": "List the networks that come with gaprune.",
    "doctor": "Check that gaprune works on this machine.",
}
"""Command → the first line of its help. Its code is loaded when it is named: torch takes seconds.

The command `NAME` is the function `NAME_command` of `gaprune.cli.NAME_command`.
"""
EPILOG = f"""
Exit codes: 0 done; 1 failed; 2 wrong usage or input; 130 stopped by Ctrl-C; 143 by SIGTERM.

Environment: NO_COLOR=1 takes the colours away; {DEBUG_VARIABLE}=1 shows the traceback of errors.

More: gaprune prune --help, and so on for every command; pages to read are in docs/ of the
repository, docs/index.md first.
"""

app = typer.Typer(
    name="gaprune",
    no_args_is_help=True,
    rich_markup_mode=MARKUP,
    pretty_exceptions_enable=False,  # main() has the last word
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)


class _Later(TyperCommand):
    """A command that is known by name and summary, and becomes itself when it is used."""

    def make_context(self, *given: Any, **stated: Any) -> Any:  # noqa: ANN401 - click's own types
        """Load the command, and let it read its arguments."""
        return load(str(self.name)).make_context(*given, **stated)


def load(name: str) -> Any:  # noqa: ANN401 - typer has click's classes as its own
    """Return a command with all its options; `name` is a key of `COMMANDS`."""
    alone = typer.Typer(rich_markup_mode=MARKUP, add_completion=False)
    alone.command(name)(getattr(import_module(f"{__name__}.{name}_command"), f"{name}_command"))
    return _plain(get_command(alone))


def _plain(command: Any) -> Any:  # noqa: ANN401 - as above
    """Show no type behind a switch: it takes no value."""
    for one in command.params:
        if getattr(one, "is_flag", False) and one.metavar is None:
            one.metavar = ""
    return command


def _nothing() -> None:
    """Stand for a command until it is loaded."""


for _name, _summary in COMMANDS.items():
    app.command(_name, cls=_Later, help=_summary)(_nothing)


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
        _plain(get_command(app)).main(arguments, prog_name="gaprune")
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
