"""The pages of the documents with their blocks, commands and links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
        *sorted((ROOT / "benchmarks").glob("*.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    ]
}
"""Path from the root → text."""

FORMATS = ("gaprune sparse",)  # names that look like commands
NOT_RUN = re.compile(r"<!-- not run by the tests: .+ -->\s*\Z")  # marks a block that is not run
_BLOCK = re.compile(
    r"^```(?P<kind>\w*)(?: title=\"(?P<title>[^\"]+)\")?[^\n]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_INLINE = re.compile(r"(?<!`)`((?:\.venv/bin/)?gaprune [^`]+)`")
_LINK = re.compile(r"\[[^\]]*\]\((?P<to>[^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block of code: its language, its title or None, and whether tests run it."""

    kind: str
    title: str | None
    text: str
    runs: bool


def blocks(page: str) -> list[Block]:
    """Return a page's fenced blocks in order."""
    text = PAGES[page]
    return [
        Block(
            match["kind"], match["title"], match["text"], not NOT_RUN.search(text[: match.start()])
        )
        for match in _BLOCK.finditer(text)
    ]


def commands(page: str) -> Iterator[tuple[list[str], bool]]:
    """Yield the words of every `gaprune …` command, and whether it is complete (in a block)."""
    for block in blocks(page):
        for line in re.sub(r"\\\n\s*", "", block.text).splitlines():
            text = line.strip().removeprefix("$ ").removeprefix(".venv/bin/")
            if text.startswith("gaprune ") and block.kind in ("", "sh", "text"):
                # Two spaces separate a command from its explanation.
                words = shlex.split(re.split(r"\s{2,}|;", text)[0], comments=True)
                if len(words) > 1:
                    yield words[1:], True
    for match in _INLINE.finditer(_prose(page)):
        if match[1] not in FORMATS:
            yield shlex.split(match[1].removeprefix(".venv/bin/"))[1:], False


def links(page: str) -> Iterator[tuple[str, str]]:
    """Yield (path from the root, anchor) of the links inside the project."""
    folder = (ROOT / page).parent
    for match in _LINK.finditer(_prose(page)):
        if "://" in match["to"]:
            continue
        path, _, anchor = match["to"].partition("#")
        target = (folder / path).resolve() if path else ROOT / page
        yield target.relative_to(ROOT).as_posix(), anchor


def anchors(page: str) -> set[str]:
    """Return the anchors of the headings of a page, as Markdown generates them."""
    plain = (re.sub(r"[`*\[\]]|\(\S+\)", "", heading) for heading in _HEADING.findall(_prose(page)))
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower()) for text in plain}


def _prose(page: str) -> str:
    """Return a page without its fenced blocks."""
    return _BLOCK.sub("", PAGES[page])
