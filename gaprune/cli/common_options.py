"""Options that several commands share: output, shell completion, `--set KEY=VALUE`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import typer

from gaprune.errors import InputError

RUNS = Path("runs")  # where results go without --out
OUTPUT = "Output"  # panel of the help


def switch(name: str, text: str, panel: str | None = OUTPUT) -> Any:  # noqa: ANN401 - typer's own
    """Return an option that takes no value."""
    return typer.Option(name, help=text, rich_help_panel=panel)


def value(  # its type is not public either
    text: str,
    metavar: str,
    names: Iterable[str] = (),
    *,
    joined: bool = False,
    panel: str | None = OUTPUT,
) -> Any:  # noqa: ANN401
    """Return an option with a value, which shells complete with `names`; see `completion`."""
    return typer.Option(
        help=text,
        metavar=metavar,
        # defaults that are not None are named in the help text
        show_default=False,
        rich_help_panel=panel,
        autocompletion=completion(names, joined=joined) if names else None,
    )


def slug(target: str) -> str:
    """Return the folder name of a target: `path/to/net.py:make` → `net-make`."""
    return re.sub(r"[^\w.]+", "-", re.sub(r"\.py:", "-", target.replace("\\", "/").split("/")[-1]))


def stated(options: Mapping[str, object]) -> dict[str, Any]:
    """Return the options that the user has given: the others are None or an empty list."""
    return {name: value for name, value in options.items() if value not in (None, [])}


def completion(names: Iterable[str], *, joined: bool = False) -> Callable[[str], list[str]]:
    """Return the completion of an option; where nothing fits, shells complete file names.

    `names` are its valid values, of which it takes several by commas if they are `joined`.

    Examples:
        >>> completion(("lamp", "magnitude", "wanda"), joined=True)("lamp,")
        ['lamp,magnitude', 'lamp,wanda']
    """
    known = list(names)

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",") if joined else ("", "", incomplete)
        taken = before.split(",")  # a name counts once, however often it is typed
        fitting = (name for name in known if name.startswith(last) and name not in taken)
        return [f"{before}{comma}{name}" for name in fitting]

    return complete


def read_pairs(pairs: Iterable[str], options: Mapping[str, object]) -> dict[str, Any]:
    """Return the keys and values of `--set`; values are TOML, where quotes may be left out.

    `options` holds the keys that other options set.

    Raises:
        InputError: no `=`, an empty key, or a key that is set twice.
    """
    from gaprune.io.bounded_reading import parse_toml  # noqa: PLC0415 - help needs to read nothing

    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        key = name.strip().replace("-", "_")  # options have dashes, config.toml has underscores
        if not equals or not key:
            raise InputError(f"set: must be KEY=VALUE, got {pair!r}; such as --set steps=50")
        if key in values or key in options:
            raise InputError(f"set: {key!r} is set twice; leave one out")
        try:
            values[key] = parse_toml(f"value = {text.strip()}")["value"]
        except ValueError:
            values[key] = text.strip()  # a bare word, for which shells would need two quotes
    return values


def with_config(
    stated: Mapping[str, Any], config: Path | None, *, trust_code: bool
) -> dict[str, Any]:
    """Return the options of the command line, and those of a configuration file beside them.

    Args:
        stated: options that the user has given; they take precedence.
        config: a TOML file, or None.
        trust_code: whether code that only the file names may run.

    Raises:
        InputError: the file cannot be read, or names code that may not run.
    """
    if config is None:
        return dict(stated)
    from gaprune.io.run_files import read_config  # noqa: PLC0415 - help needs to read nothing
    from gaprune.io.trusted_code import check_code  # noqa: PLC0415 - as above

    rest = {key: value for key, value in read_config(config).items() if key not in stated}
    check_code(rest, config, trust_code=trust_code, remedy=", or name it on the command line")
    return rest | dict(stated)


QUIET: Any = typer.Option("--quiet", "-q", help="show no progress", rich_help_panel=OUTPUT)
VERBOSE: Any = typer.Option(
    "--verbose", "-v", help="show layers, one-shot methods and inputs too", rich_help_panel=OUTPUT
)
SET: Any = typer.Option(
    "--set",
    help="any key of config.toml, such as steps=50; repeatable",
    metavar="KEY=VALUE",
    rich_help_panel=OUTPUT,
)
CONFIG = value(
    "TOML file with these options as keys, such as the config.toml of a run or comparison", "FILE"
)
NO_SAVE = switch("--no-save", "write no folder")
TRUST_CODE = switch(
    "--trust-code",
    "run code that a file names or holds: a factory, an objective, a method, a .pt2 program",
    None,
)
PROFILE = switch("--profile", "show where the time went, and write it into result.json")
TENSORBOARD = value("write TensorBoard events into this folder during the search", "DIR")
RESULT = switch("--json", "print result.json to stdout instead of tables")
ROWS = switch("--json", "print a JSON list of rows")
RUN: Any = typer.Argument(help="folder of the run", metavar="RUN", show_default=False)
