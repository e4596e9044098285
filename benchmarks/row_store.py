"""Rows of a benchmark in a file, so that a stopped benchmark continues."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from gaprune.errors import InputError, unknown_name
from gaprune.io.serialization import to_json

FILE = "rows.jsonl"
VERSION = metadata.version("gaprune")  # searches of another version may give other rows


def check_names(*arguments: tuple[str, Collection[str], Collection[str]]) -> None:
    """Check options that select rows: argument, its names, the known ones.

    Raises:
        InputError: a name that is not known.
    """
    for argument, names, known in arguments:
        for name in names:
            if name not in known:
                raise unknown_name(argument, name, known)


class RowStore:
    """A folder with one row per line of `rows.jsonl`, each written as soon as it is measured.

    Args:
        folder: created where it is missing; rows of earlier runs are read.

    Raises:
        InputError: the folder cannot be used, or a line is not a row.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._path.open("a+b") as file:
                file.seek(0)
                content = file.read()
                # A crash can leave an incomplete last line: drop it, its row is measured again.
                complete = content[: content.rfind(b"\n") + 1]
                file.truncate(len(complete))
        except OSError as error:
            raise InputError(
                f"rows: cannot write to {folder} ({error.strerror or error}); name another folder"
            ) from error
        self._rows: list[dict[str, Any]] = [self._parse(line) for line in complete.splitlines()]

    def find(self, **values: object) -> dict[str, Any] | None:
        """Return the newest row that `find_all` finds, or None."""
        rows = self.find_all(**values)
        return rows[-1] if rows else None

    def find_all(self, **values: object) -> list[dict[str, Any]]:
        """Return the rows that have these values and no `note`, the newest last.

        A row with a note has no figures, for example because a package was missing. It is measured
        again, since the reason may be gone.
        """
        expected = _plain(values)
        return [
            row
            for row in self._rows
            if not row.get("note")
            and all(row.get(name) == value for name, value in expected.items())
        ]

    def add(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Append a row, flush it to the disk and return it as plain data."""
        with self._path.open("ab") as file:
            file.write(f"{to_json(row)}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        self._rows.append(_plain(row))
        return self._rows[-1]

    def _parse(self, line: bytes) -> dict[str, Any]:
        try:
            row: dict[str, Any] = json.loads(line)
            dict(row)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"rows: a line of {self._path} is not a row ({error}); remove the line, or name "
                "another folder"
            ) from error
        return row


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """Convert to what JSON gives back: tuples become lists."""
    plain: dict[str, Any] = json.loads(to_json(value))
    return plain
