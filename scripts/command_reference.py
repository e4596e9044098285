"""The command reference: every command with its options, read from the commands themselves.

MkDocs calls `on_page_markdown` for each page (`hooks` in mkdocs.yml). The page that holds `PLACE`
gets the reference there, so it can't be stale; `FILE` brings in a file of the project's root. Run
as a file, it prints the reference.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from typer.main import get_command

from gaprune.cli import COMMANDS, app, load

ROOT = Path(__file__).resolve().parents[1]
PLACE = "<!-- commands -->"
FILE = re.compile(r"<!-- file: (\S+) -->")
OPTIONS = "Options"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page's source with the reference, or a file, in its place; MkDocs calls it."""
    if PLACE in markdown:
        return markdown.replace(PLACE, reference())
    return FILE.sub(lambda found: _included(found[1]), markdown)


def _included(name: str) -> str:
    """Return a file of the root; its links lead from the root, and those of pages from docs/."""
    return (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")


def reference() -> str:
    """Return all commands as Markdown."""
    group: Any = get_command(app)
    general = [one for one in group.params if not getattr(one, "hidden", False)]
    commands = (command(name, load(name)) for name in COMMANDS)
    return "\n\n".join([_table(OPTIONS, general), *commands])


def command(name: str, one: Any) -> str:  # noqa: ANN401 - typer has click's classes as its own
    """Return one command: usage, what it does, its examples, a table for every panel."""
    context = one.make_context(f"gaprune {name}", [], resilient_parsing=True)
    usage = one.get_usage(context).removeprefix("Usage: ")
    parts = [f"## gaprune {name}", f"```text\n{' '.join(usage.split())}\n```", _prose(one.help)]
    panels: dict[str, list[Any]] = {}
    for parameter in one.params:
        if not getattr(parameter, "hidden", False):
            panel = getattr(parameter, "rich_help_panel", None)
            kind = "Arguments" if parameter.param_type_name == "argument" else OPTIONS
            panels.setdefault(panel or kind, []).append(parameter)
    parts += [_table(panel, own) for panel, own in panels.items()]
    return "\n\n".join(parts)


def _prose(text: str | None) -> str:
    """Return a docstring's paragraphs with its examples as code."""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text or "")]
    examples = [part[9:] for part in paragraphs if part.startswith("Example: ")]
    prose = [_escape(part) for part in paragraphs if not part.startswith("Example: ")]
    lines = "\n".join(examples)
    return "\n\n".join([*prose, *([f"```sh\n{lines}\n```"] if examples else [])])


def _table(panel: str, parameters: list[Any]) -> str:
    rows = [f"| {_names(one)} | {_cell(one)} |" for one in parameters]
    return "\n".join([f"**{panel}**", "", "| name | meaning |", "|---|---|", *rows])


def _names(one: Any) -> str:  # noqa: ANN401 - as above
    """Return how a parameter is written: all its names, and what stands for its value."""
    value = one.metavar or one.name.upper()
    if one.param_type_name == "argument":
        return f"`{value}`"
    spelt = ", ".join(f"`{name}`" for name in (*one.opts, *one.secondary_opts))
    return spelt if one.is_flag else f"{spelt} `{value}`"


def _cell(one: Any) -> str:  # noqa: ANN401 - as above
    text = _escape(" ".join((getattr(one, "help", None) or "").split()))
    return text + (" (required)" if one.required and one.param_type_name == "option" else "")


def _escape(text: str) -> str:
    """Keep Markdown from reading stars, bars, underscores and brackets of plain text."""
    return re.sub(r"([*|_<\[\]])", r"\\\1", text)


if __name__ == "__main__":
    print(reference())
