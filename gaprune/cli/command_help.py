"""The help of a command: what most users need, and with `--help-all` every option."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import typer
from typer.core import TyperCommand

INTRODUCTION = 2  # paragraphs of a docstring that the short help shows, beside the examples
INDENT = 24  # columns before the texts of options
ESSENTIAL: dict[str, dict[str, tuple[str, ...]]] = {
    "prune": {
        "Your network": (
            *("weights", "input_shape", "input_kind", "range", "mean", "std"),
            *("calibration", "test"),
        ),
        "What to remove": ("sparsity", "max_drop", "pattern", "ignore"),
        "Search and results": (
            *("seconds", "workers", "device", "out", "dry_run", "verbose", "help_all", "help"),
        ),
    },
    "compare": {
        "Your network": (
            *("weights", "input_shape", "input_kind", "range", "mean", "std"),
            *("calibration", "train", "test"),
        ),
        "What to compare": ("sparsity", "methods", "seeds", "pattern", "list_methods"),
        "Search and results": ("seconds", "workers", "out", "quiet", "help_all", "help"),
    },
    "sweep": {
        "Your network": ("weights", "input_shape", "input_kind", "range", "mean", "std", "test"),
        "Sweep and results": (
            *("by", "values", "max_drop", "biases", "mask", "out", "quiet", "help_all", "help"),
        ),
    },
}
"""Command → heading → options of its short help. Other commands show all their options."""


def _wrap(text: str, width: int) -> list[str]:
    """Return lines without broken words: names of options must stay whole."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


class HelpCommand(TyperCommand):
    """A command whose help is plain text, short where `ESSENTIAL` says so."""

    full = False  # whether `--help-all` asks for every option

    @property
    def is_short(self) -> bool:
        """Whether only some options are shown."""
        return self.name in ESSENTIAL and not self.full

    def format_help_text(self, _: Any, formatter: Any) -> None:  # noqa: ANN401 - click's own types
        """Write the docstring, with the examples as lines of their own at its end."""
        paragraphs = re.split(r"\n\s*\n", (self.help or "").strip())
        examples = [text for text in paragraphs if text.startswith("Example: ")]
        prose = [text for text in paragraphs if text not in examples]
        if self.is_short:
            prose = prose[:INTRODUCTION]
        for text in prose:
            formatter.write("\n" + "\n".join(_wrap(text, formatter.width)) + "\n")
        for index, text in enumerate(examples):
            formatter.write("\n" * (not index) + "\n".join(_wrap(text, formatter.width)) + "\n")

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - click's own types
        """Write the options under the headings of `ESSENTIAL`, or all under their own."""
        parameters = self.get_params(ctx)
        if self.is_short:
            by_name = {parameter.name: parameter for parameter in parameters}
            sections = {
                heading: [by_name[name] for name in names]
                for heading, names in ESSENTIAL[str(self.name)].items()
            }
        else:
            sections = {}
            for parameter in parameters:
                panel = getattr(parameter, "rich_help_panel", None) or "Options"
                is_argument = parameter.param_type_name == "argument"
                sections.setdefault("Arguments" if is_argument else panel, []).append(parameter)
        for heading, members in sections.items():
            formatter.write(f"\n{heading}:\n")
            for member in members:
                if record := member.get_help_record(ctx):
                    formatter.write(self._entry(*record, formatter.width))

    def _entry(self, name: str, text: str, width: int) -> str:
        """Return the lines of an option; the short help says what it is, not every detail."""
        words = text.partition(";")[0] if self.is_short else text
        lines = _wrap(words, width - INDENT)
        name = f"  {name.partition(' <')[0]}"  # without the type that typer adds to an argument
        if len(name) > INDENT - 2:
            lines.insert(0, "")  # a long name has a line of its own
        rest = "".join(f"\n{' ' * INDENT}{line}" for line in lines[1:])
        return f"{name:{INDENT}}{lines[0]}".rstrip() + f"{rest}\n"

    def get_help_option(self, ctx: Any) -> Any:  # noqa: ANN401 - click's own types
        """Return the option `--help`, with a text in the style of the others."""
        option: Any = super().get_help_option(ctx)
        option.help = "show this help"
        return option


def _show_all(ctx: typer.Context, requested: bool | None) -> None:  # noqa: FBT001 - typer's form
    if requested:
        ctx.command.full = True  # type: ignore[attr-defined]
        typer.echo(ctx.get_help())
        raise typer.Exit


HELP_ALL: Any = typer.Option(
    "--help-all",
    help="show every option; all are also keys of --config",
    is_eager=True,
    callback=_show_all,
    rich_help_panel="Output",
)
