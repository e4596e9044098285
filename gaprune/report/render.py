"""Render a template to a self-contained page."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from gaprune import formatting
from gaprune.report.palette import as_css

_UNIT = re.compile(r"(?<=[\d×]) (?=(?:%|bytes|[kMGT]B|s|min|h)(?!\w))")
_MINUS = re.compile(r"(?<![^\s(])-(?=\d)")


def render(template: str, content: Mapping[str, Any]) -> str:
    """Return a page in which every text is escaped.

    Its content security policy forbids it to load anything, and to run any script but its own.

    Args:
        template: a file in `templates/`.
        content: the variables of the template.
    """
    script = _file("script.js")
    # The hash allows this script only; a name with markup in it could not run another.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    policy += f"script-src 'sha256-{digest}'"
    page = _environment().get_template(template)
    return page.render(
        **content,
        policy=policy,
        style=Markup(as_css() + _file("style.css")),  # noqa: S704 - our own files
        script=Markup(script),  # noqa: S704 - as above
    )


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("gaprune.report"),
        autoescape=True,
        # A misspelt variable must fail here and not print nothing.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_typeset,
    )
    made.filters |= {name: getattr(formatting, name) for name in ("percent", "number", "duration")}
    made.filters["breakable"] = _breakable
    return made


def _typeset(value: object) -> object:
    """Keep a figure and its unit on one line, and print a minus sign instead of a hyphen."""
    if type(value) is not str:  # Markup is code or was typeset before: it is copied as it is
        return value
    return _MINUS.sub("−", _UNIT.sub("\u00a0", value))


def _breakable(name: str) -> Markup:
    """Allow a line break after each dot of a name."""
    return escape(name).replace(".", Markup(".<wbr>"))


@cache
def _file(name: str) -> str:
    return (resources.files("gaprune.report") / "templates" / name).read_text(encoding="utf-8")
