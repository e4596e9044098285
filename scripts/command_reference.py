"""MkDocs hook: insert the command reference, files of the root, notebooks, and the data flow.

MkDocs calls `on_page_markdown` for every page (`hooks` in mkdocs.yml). The reference is generated
from the commands, so it cannot be out of date. Run as a script, it prints the reference.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from typer.main import get_command

from gaprune.cli import COMMANDS, app, load_command

ROOT = Path(__file__).resolve().parents[1]
MARKER = "<!-- commands -->"
FILE = re.compile(r"<!-- file: (\S+) -->")
NOTEBOOK = re.compile(r"<!-- notebook: (\S+) -->")
DIAGRAM = re.compile(r"```mermaid\n.*?```", re.DOTALL)
# Mermaid's JavaScript would be fetched from a server by every reader, so the pages show an SVG that
# Mermaid rendered. A test compares its labels with the source in CONTRIBUTING.md.
RENDERED = "![Data flow](images/data-flow.svg)"
OPTIONS = "Options"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the source of a page with its markers replaced."""
    if MARKER in markdown:
        return markdown.replace(MARKER, reference())
    markdown = FILE.sub(lambda match: _root_file(match[1]), markdown)
    markdown = NOTEBOOK.sub(lambda match: notebook(ROOT / match[1]), markdown)
    return DIAGRAM.sub(RENDERED, markdown)


def _root_file(name: str) -> str:
    """Return a file of the root with its links rewritten to start in docs/."""
    return (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")


def notebook(path: Path) -> str:
    """Return the cells of a notebook with their outputs as Markdown."""
    parts: list[str] = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {"text/plain": output.get("text", "")})
            text = "".join(data["text/plain"]).rstrip()
            page = "".join(data.get("text/html", ""))
            # a blank line would end the HTML in Markdown
            parts.append(re.sub(r"\n\s*\n", "\n", page) if page else f"```text\n{text}\n```")
    return "\n\n".join(parts)


def reference() -> str:
    """Return all commands as Markdown."""
    group: Any = get_command(app)
    general = [option for option in group.params if not getattr(option, "hidden", False)]
    commands = (command(name, load_command(name)) for name in COMMANDS)
    return "\n\n".join([_table(OPTIONS, general), *commands])


def command(name: str, command_object: Any) -> str:  # noqa: ANN401 - typer does not export click's classes
    """Return the section of a command: usage, description, examples, one table per panel."""
    context = command_object.make_context(f"gaprune {name}", [], resilient_parsing=True)
    usage = command_object.get_usage(context).removeprefix("Usage: ")
    usage = " ".join(usage.split())
    parts = [f"## gaprune {name}", f"```text\n{usage}\n```", _prose(command_object.help)]
    panels: dict[str, list[Any]] = {}
    for parameter in command_object.params:
        if not getattr(parameter, "hidden", False):
            panel = getattr(parameter, "rich_help_panel", None)
            kind = "Arguments" if parameter.param_type_name == "argument" else OPTIONS
            panels.setdefault(panel or kind, []).append(parameter)
    parts += [_table(panel, options) for panel, options in panels.items()]
    return "\n\n".join(parts)


def _prose(text: str | None) -> str:
    """Return a docstring's paragraphs with its examples as code."""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text or "")]
    examples = [part[9:] for part in paragraphs if part.startswith("Example: ")]
    prose = [_escape(part) for part in paragraphs if not part.startswith("Example: ")]
    lines = "\n".join(examples)
    return "\n\n".join([*prose, *([f"```sh\n{lines}\n```"] if examples else [])])


def _table(panel: str, parameters: list[Any]) -> str:
    rows = [f"| {_names(option)} | {_cell(option)} |" for option in parameters]
    return "\n".join([f"**{panel}**", "", "| name | meaning |", "|---|---|", *rows])


def _names(option: Any) -> str:  # noqa: ANN401 - as above
    """Return all names of a parameter, with a placeholder for its value."""
    value = option.metavar or option.name.upper()
    if option.param_type_name == "argument":
        return f"`{value}`"
    spelt = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    return spelt if option.is_flag else f"{spelt} `{value}`"


def _cell(option: Any) -> str:  # noqa: ANN401 - as above
    text = _escape(" ".join((getattr(option, "help", None) or "").split()))
    return text + (" (required)" if option.required and option.param_type_name == "option" else "")


def _escape(text: str) -> str:
    """Escape the characters that Markdown interprets."""
    return re.sub(r"([*|_<\[\]])", r"\\\1", text)


if __name__ == "__main__":
    print(reference())
