"""Rows of figures, and a folder that keeps each as soon as it is known."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gaprune.errors import InputError
from gaprune.io.serialization import to_json

FILE = "rows.jsonl"


@dataclass(frozen=True)
class Row:
    """What was measured of one thing.

    Attributes:
        part: of the benchmark.
        name: of the thing in it.
        figures: name → number.
        made_of: what the figures depend on beside part and name; others make a new row.
        note: why there are none, or empty.
    """

    part: str
    name: str
    figures: Mapping[str, float]
    made_of: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def record(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


class Kept:
    """A folder of rows, made where it is missing.

    Raises:
        InputError: it cannot be used, or a line in it is no row.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._rows: dict[tuple[str, str], Row] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lines = self._path.read_bytes().split(b"\n") if self._path.exists() else [b""]
        except OSError as error:
            raise InputError(
                f"rows: cannot write to {folder} ({error.strerror or error}); name another folder"
            ) from error
        if lines.pop():  # torn, where the machine went down
            self._path.write_bytes(b"".join(line + b"\n" for line in lines))
        for line in lines:
            try:
                row = Row(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise InputError(
                    f"rows: a line of {self._path} is no row ({error}); take it out, or name "
                    "another folder"
                ) from error
            self._rows[row.part, row.name] = row

    def find(self, part: str, name: str, made_of: Mapping[str, Any]) -> Row | None:
        """Return a row that has figures and depends on the same, or None."""
        row = self._rows.get((part, name))
        same = row is not None and row.made_of == json.loads(to_json(made_of))
        return row if same and row is not None and not row.note else None

    def add(self, row: Row) -> None:
        """Append a row; it is on the disk when this returns."""
        with self._path.open("ab") as file:
            file.write(f"{to_json(row.record())}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        self._rows[row.part, row.name] = row


def figures_of(rows: Iterable[Row]) -> dict[str, Any]:
    """Return part → name → figures, as `benchmarks.claims` takes them."""
    found: dict[str, Any] = {}
    for row in rows:
        found.setdefault(row.part, {})[row.name] = dict(row.figures)
    return found
