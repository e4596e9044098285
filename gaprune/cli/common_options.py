"""Options that several commands share: output, shell completion, `--set KEY=VALUE`."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import typer

from gaprune.errors import InputError

OUTPUT = "Output"  # panel of the help

QUIET: Any = typer.Option("--quiet", "-q", help="show no progress", rich_help_panel=OUTPUT)
NO_SAVE: Any = typer.Option("--no-save", help="write no folder", rich_help_panel=OUTPUT)
PROFILE: Any = typer.Option(
    "--profile",
    help="show where the time went, and write it into result.json",
    rich_help_panel=OUTPUT,
)
TENSORBOARD: Any = typer.Option(
    help="write TensorBoard events into this folder during the search",
    metavar="DIR",
    show_default=False,
    rich_help_panel=OUTPUT,
)
RESULT: Any = typer.Option(
    "--json", help="print result.json to stdout instead of tables", rich_help_panel=OUTPUT
)
ROWS: Any = typer.Option("--json", help="print a JSON list of rows", rich_help_panel=OUTPUT)
SET: Any = typer.Option(
    "--set",
    help="any key of config.toml, such as steps=50; repeatable",
    metavar="KEY=VALUE",
    rich_help_panel=OUTPUT,
)
RUN: Any = typer.Argument(help="folder of the run", metavar="RUN", show_default=False)


def folder(text: str) -> Any:  # noqa: ANN401 - typer's own type is not public
    """Return the option `--out` with its own help text."""
    return typer.Option(help=text, metavar="DIR", rich_help_panel=OUTPUT)


def overwrite(text: str) -> Any:  # noqa: ANN401 - as above
    """Return the option `--overwrite` with its own help text."""
    return typer.Option("--overwrite", help=text, rich_help_panel=OUTPUT)


def config(example: str) -> Any:  # noqa: ANN401 - as above
    """Return the option `--config`; `example` names such a file."""
    text = f"TOML file with these options as keys, such as {example}"
    return typer.Option(help=text, metavar="FILE", rich_help_panel=OUTPUT)


def stated(options: Mapping[str, object]) -> dict[str, Any]:
    """Return the options that the user has given: the others are None or an empty list."""
    return {name: value for name, value in options.items() if value not in (None, [])}


def completion(names: Iterable[str], *, joined: bool = False) -> Callable[[str], list[str]]:
    """Return the completion of an option; where nothing fits, shells complete file names.

    Args:
        names: its valid values.
        joined: whether it takes several values joined by commas.

    Examples:
        >>> completion(("lamp", "magnitude", "wanda"), joined=True)("lamp,")
        ['lamp,magnitude', 'lamp,wanda']
    """
    known = list(names)

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",") if joined else ("", "", incomplete)
        taken = before.split(",")
        return [
            f"{before}{comma}{name}"
            for name in known
            if name.startswith(last) and name not in taken
        ]

    return complete


def read_pairs(pairs: Iterable[str], options: Mapping[str, object]) -> dict[str, Any]:
    """Return the keys and values of `--set`; values are TOML, where quotes may be left out.

    Args:
        pairs: such as `steps=50`; `-` in a key means `_`.
        options: keys that other options set.

    Raises:
        InputError: no `=`, an empty key, or a key that is set twice.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        key = name.strip().replace("-", "_")
        if not equals or not key:
            raise InputError(f"set: must be KEY=VALUE, got {pair!r}; such as --set steps=50")
        if key in values or key in options:
            raise InputError(f"set: {key!r} is set twice; leave one out")
        try:
            values[key] = tomllib.loads(f"value = {text.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            values[key] = text.strip()
    return values
