"""The command `gaprune`: its commands, exit codes and error messages."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module, metadata
from typing import Annotated, Any

import typer
from typer.core import TyperCommand
from typer.main import get_command

from gaprune.cli.command_help import HelpCommand
from gaprune.errors import GapruneError, InputError, options_of_the_command_line

DEBUG, DEBUG_VARIABLE = "--debug", "GAPRUNE_DEBUG"
COMMANDS: dict[str, str] = {
    "prune": "Prune a pretrained network without its training data.",
    "resume": "Continue a run that was stopped by Ctrl-C, a crash or a power cut.",
    "compare": "Compare the evolved mask with every other method, fine-tuned or not.",
    "sweep": "Vary one number over a range and see where the network breaks.",
    "export": "Write a pruned network in a format that other tools read.",
    "measure": "Measure weight files: bytes, multiply-adds, latency, agreement.",
    "report": "Create report.html of a run or a comparison again.",
    "watch": "Show the progress of a run until it ends.",
    "demo": "Prune a real network to 2 % of its weights without data.",
    "zoo": "List the bundled networks.",
    "doctor": "Check that gaprune works on this machine.",
}
"""Command → first line of its help. `NAME` is `NAME_command` in `gaprune.cli.NAME_command`.

A command is imported when it is used, since importing torch takes seconds.
"""
_UsageError: Any = typer.BadParameter.__base__  # typer has click's classes as its own
EPILOG = f"""
Exit codes: 0 done; 1 failed; 2 wrong usage or input; 130 stopped by Ctrl-C; 143 by SIGTERM.

Environment: NO_COLOR=1 disables colours; {DEBUG_VARIABLE}=1 shows the traceback of errors.

More: gaprune prune --help, and so on for every command. The documentation is in docs/ of the
repository; start with docs/index.md.
"""

app = typer.Typer(
    name="gaprune",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain text: importing rich takes as long as all the rest of the help
    pretty_exceptions_enable=False,  # main() prints errors
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=EPILOG,
)


class _LazyCommand(TyperCommand):
    """Stands for a command by its name and summary, and loads it when it is used."""

    def get_short_help_str(self, limit: int = 0) -> str:
        """Return the whole summary; click cuts long ones."""
        del limit
        return str(self.help)

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:  # noqa: ANN401 - click's own types
        """Load the command and let it parse its arguments; InputError for a renamed option."""
        command = load_command(str(self.name))
        _check_renamed(args, {option for parameter in command.params for option in parameter.opts})
        return command.make_context(info_name, args, *rest, **extra)


def load_command(name: str) -> Any:  # noqa: ANN401 - typer has click's classes as its own
    """Return a command with all its options; `name` is a key of `COMMANDS`."""
    single = typer.Typer(rich_markup_mode=None, add_completion=False)
    module = import_module(f"{__name__}.{name}_command")
    single.command(name, cls=HelpCommand)(getattr(module, f"{name}_command"))
    return _without_switch_types(get_command(single))


def _check_renamed(arguments: Sequence[str], known: set[str]) -> None:
    for argument in arguments:
        option = argument.partition("=")[0]
        # an option that exists is right, even if another one had its name before
        if not option.startswith("--") or option in known:
            continue
        from gaprune.config import RENAMED  # noqa: PLC0415 - the help of all commands is quick

        name = option.removeprefix("--").replace("-", "_")
        if name in RENAMED:
            new = RENAMED[name].replace("_", "-")
            raise InputError(f"{option}: this option is now called --{new}")


def _without_switch_types(command: Any) -> Any:  # noqa: ANN401 - as above
    """Remove the type behind a switch in the help: a switch takes no value."""
    for parameter in command.params:
        if getattr(parameter, "is_flag", False) and parameter.metavar is None:
            parameter.metavar = ""
    return command


# the help of all commands needs only names and summaries: no command is imported for it
for _name, _summary in COMMANDS.items():
    app.command(_name, cls=_LazyCommand, help=_summary)(lambda: None)


def _show_version(requested: object) -> None:
    if requested:
        typer.echo(f"gaprune {metadata.version('gaprune')}")
        raise typer.Exit


@app.callback()
def _global_options(
    *,
    debug: Annotated[  # main() reads it; here it is documented
        bool, typer.Option(DEBUG, help=f"show the traceback of errors (or {DEBUG_VARIABLE}=1)")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="print the version", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Prune a pretrained PyTorch network without its training data.

    The weights stay frozen; a genetic algorithm decides which of them to keep.

    Example: gaprune prune mnist-mlp --sparsity 0.95
    """


def _show_warning(message: Warning | str, category: object, filename: str, *_: object) -> None:
    """Print a warning of gaprune or of the user's code; those of libraries help nobody here."""
    if "site-packages" not in filename and not filename.startswith(sys.base_prefix):
        typer.echo(_one_line(f"gaprune: warning: {message}"), err=True)


def _one_line(message: str) -> str:
    """Join lines, and escape what a terminal would obey; a message may quote a hostile file."""
    text = " ".join(line.strip() for line in message.splitlines())
    return "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `arguments` None reads those of the process.

    0 done; 1 failed; 2 wrong usage or input; 130 and 143 stopped by Ctrl-C and SIGTERM. An error is
    one message on stderr, with a traceback if `--debug` or `GAPRUNE_DEBUG=1` asks for it.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Unicode must not end a run
    debug = DEBUG in arguments or os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")
    with options_of_the_command_line():
        return _run_command(arguments, debug=debug)


def _run_command(arguments: Sequence[str], *, debug: bool) -> int:
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.showwarning = _show_warning  # type: ignore[assignment]
            command = _without_switch_types(get_command(app))
            code = command.main(arguments, prog_name="gaprune", standalone_mode=False)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except _UsageError as error:
        return _report_usage(error, arguments)
    except Exception as error:  # noqa: BLE001 - the last handler of the program
        if debug:
            traceback.print_exc()
        message = f"gaprune: error: {error}"
        if not isinstance(error, GapruneError):
            message = (
                f"gaprune: error: {type(error).__name__}: {error} "
                f"(unexpected; gaprune {DEBUG} … shows where)"
            )
        typer.echo(_one_line(message), err=True)
        return 2 if isinstance(error, InputError) else 1
    return code if isinstance(code, int) else 0


def _report_usage(error: Any, arguments: Sequence[str]) -> int:  # noqa: ANN401 - click's own type
    """Print wrong usage as other errors are printed; no arguments at all show the help."""
    if arguments and error.ctx:
        typer.echo(error.ctx.get_usage(), err=True)
        hint = f"`{error.ctx.command_path} --help` lists what is valid"
        typer.echo(_one_line(f"gaprune: error: {error.format_message()} ({hint})"), err=True)
    else:
        error.show()
    return 2
