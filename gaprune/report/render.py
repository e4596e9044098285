"""From a template and what is to be shown to one page that asks nothing of the network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from gaprune.report import words
from gaprune.report.palette import as_css


def render(template: str, content: Mapping[str, Any]) -> str:
    """Return a page; every text in it is escaped, whoever it came from.

    A policy inside the page forbids it to load anything, and to run any script but its own.

    Args:
        template: a file in `templates/`.
        content: what it shows.
    """
    script = _file("script.js")
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
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {name: getattr(words, name) for name in ("percent", "number", "duration")}
    made.filters["breakable"] = _breakable
    return made


def _breakable(name: str) -> Markup:
    """Return a dotted name that may go on in the next line after a dot."""
    return escape(name).replace(".", Markup(".<wbr>"))


@cache
def _file(name: str) -> str:
    return (resources.files("gaprune.report") / "templates" / name).read_text(encoding="utf-8")
