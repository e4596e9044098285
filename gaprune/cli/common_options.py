"""Options about what is printed and where results go, the same in all commands."""

from __future__ import annotations

from typing import Any

import typer

OUTPUT = "Output"

QUIET: Any = typer.Option("--quiet", "-q", help="no progress", rich_help_panel=OUTPUT)
PROFILE: Any = typer.Option(
    "--profile",
    help="show at the end where the time went, and write it into result.json",
    rich_help_panel=OUTPUT,
)
TENSORBOARD: Any = typer.Option(
    help="write TensorBoard events into this folder while the search goes on",
    metavar="DIR",
    show_default=False,
    rich_help_panel=OUTPUT,
)
ROWS: Any = typer.Option("--json", help="print a list of rows", rich_help_panel=OUTPUT)


def folder(text: str) -> Any:  # noqa: ANN401 - typer's own type is not public
    """Return the option `--out` with its own words."""
    return typer.Option(help=text, metavar="DIR", rich_help_panel=OUTPUT)


def overwrite(text: str) -> Any:  # noqa: ANN401 - as above
    """Return the option `--overwrite` with its own words."""
    return typer.Option("--overwrite", help=text, rich_help_panel=OUTPUT)


def config(example: str) -> Any:  # noqa: ANN401 - as above
    """Return the option `--config`; `example` names a file that is one."""
    return typer.Option(
        help=f"TOML file with these options as keys, such as {example}",
        metavar="FILE",
        rich_help_panel=OUTPUT,
    )
