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

_UNIT = re.compile(r"(?<=[\d×]) (?=(?:%|bytes|[kMGT]B|s|min|h)(?!\w))")
_MINUS = re.compile(r"(?<![^\s(])-(?=\d)")

_COLOURS = {  # tests check their contrast; CSS variable → light, dark
    "page": ("#f7f6f2", "#121518"),
    "card": ("#ffffff", "#1a1f23"),
    "ink": ("#1c2024", "#eceae4"),
    "soft": ("#59606a", "#a8aeb5"),
    "line": ("#dcd9d0", "#343b41"),
    "grid": ("#ebe8e0", "#272d32"),
    "accent": ("#0b6e5d", "#52cfb2"),
    "tint": ("#e3f1ed", "#17322d"),
    "s0": ("#0b6e5d", "#52cfb2"),
    "s1": ("#a54a06", "#f3a35c"),
    "s2": ("#2563b8", "#84b4f5"),
    "s3": ("#a3317a", "#ee8fc9"),
    "s4": ("#6b6f12", "#cfcf5d"),
    "s5": ("#6941c6", "#b9a3f8"),
    "s6": ("#b3261e", "#f58f86"),
    "s7": ("#59606a", "#a8aeb5"),
}
LIGHT = {name: light for name, (light, _) in _COLOURS.items()}
DARK = {name: dark for name, (_, dark) in _COLOURS.items()}


def environment(**options: Any) -> Environment:
    """Return a template environment with the formats of `gaprune.formatting` as filters."""
    made = Environment(  # noqa: S701 - pages set autoescape; Markdown needs none
        # A misspelt variable must fail here and not print nothing.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    made.filters |= {name: getattr(formatting, name) for name in ("percent", "number", "duration")}
    return made


def render(template: str, content: Mapping[str, Any]) -> str:
    """Return a page of `templates/` in which every text is escaped.

    Its content security policy forbids it to load anything, and to run any script but its own.
    """
    script = _file("script.js")
    # The hash allows this script only; a name with markup in it could not run another.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    policy += f"script-src 'sha256-{digest}'"
    # our own files: nothing of the user is marked as safe
    code = {"style": Markup(as_css() + _file("style.css")), "script": Markup(script)}  # noqa: S704
    return _environment().get_template(template).render(**content, policy=policy, **code)


@cache
def _environment() -> Environment:
    loader = PackageLoader("gaprune.report")
    made = environment(loader=loader, autoescape=True, finalize=_typeset)
    made.filters["breakable"] = _breakable
    return made


def _typeset(value: object) -> object:
    """Keep a figure and its unit on one line, and print a minus sign instead of a hyphen."""
    # Markup is copied as it is: templates escape code with `| e`, so that it works when pasted.
    if type(value) is not str:
        return value
    return _MINUS.sub("−", _UNIT.sub("\u00a0", value))


def _breakable(name: str) -> Markup:
    """Allow a line break after each dot of a name."""
    return escape(name).replace(".", Markup(".<wbr>"))


@cache
def _file(name: str) -> str:
    return (resources.files("gaprune.report") / "templates" / name).read_text(encoding="utf-8")


def as_css() -> str:
    """Return both sets as CSS variables: the system's theme, unless the reader chooses another.

    Printed pages are light.
    """
    light, dark = (
        "".join(f"--{name}:{value};" for name, value in colours.items())
        for colours in (LIGHT, DARK)
    )
    # The reader's choice overrides the theme of the system, and paper is always light.
    return (
        f":root{{color-scheme:light;{light}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light])"
        f"{{color-scheme:dark;{dark}}}}}\n"
        f"@media screen{{:root[data-theme=dark]{{color-scheme:dark;{dark}}}}}\n"
    )
