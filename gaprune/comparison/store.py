"""A folder of rows: each is on the disk as soon as it is known, and a stopped comparison goes on.

::

    comparison.json    what is compared: everything that a row depends on beside its key
    rows.jsonl         one row a line, appended and synced
    rows.json          those of the comparison that ended last, as one list
    rows.csv           the same as a table
    table.md           medians and spread
    accuracy.svg       accuracy against sparsity; also as .png
    report.html        all of it to be read
    config.toml        what was asked for last
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gaprune.comparison.rows import Row, RowKey
from gaprune.errors import GapruneError, InputError
from gaprune.io.atomic import check_output_folder, write_file, writing
from gaprune.io.serialization import to_json

IDENTITY, ROWS, LIST, CSV = "comparison.json", "rows.jsonl", "rows.json", "rows.csv"
TABLE, CONFIG = "table.md", "config.toml"
PLOTS = ("accuracy.svg", "accuracy.png")
REPORT = "report.html"
_OF_ROWS = (LIST, CSV, TABLE, CONFIG, REPORT, *PLOTS)  # made again from rows
_MAY_HOLD = {IDENTITY, ROWS, *_OF_ROWS}


class Store:
    """An open folder of rows, locked against a second comparison; made by `open_store`.

    Attributes:
        folder: where it is.
        rows: those that are there, also where they say why there is no figure.
    """

    def __init__(self, folder: Path, file: io.FileIO, rows: Iterable[Row]) -> None:
        self.folder = folder
        self._file = file
        self.rows: dict[RowKey, Row] = {row.key: row for row in rows}

    def add(self, row: Row) -> None:
        """Append a row, unless it is there word for word; it is on the disk when this returns.

        Raises:
            GapruneError: the disk is full, or refuses.
        """
        if self.rows.get(row.key) == row:  # what fails the same way is told once
            return
        with writing(self.folder, GapruneError):
            left = f"{to_json(row.record())}\n".encode()
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        self.rows[row.key] = row

    def write(self, name: str, text: str) -> None:
        """Write one of the other files whole, over an earlier one."""
        with writing(self.folder, GapruneError):
            write_file(self.folder / name, text)


@contextmanager
def open_store(
    folder: str | Path, identity: Mapping[str, Any], *, overwrite: bool = False
) -> Iterator[Store]:
    """Open a folder to go on with its rows, or make it.

    Args:
        folder: new, empty, or one of an earlier comparison of the same things.
        identity: what all rows depend on; plain data.
        overwrite: whether rows that are there are thrown away, with what was made of them.

    Raises:
        InputError: the folder holds something else, or rows of another comparison (the message
            says what differs), or another comparison writes there now.
        GapruneError: the folder cannot be written.
    """
    place = Path(folder).expanduser().resolve()
    plain = json.loads(to_json(dict(identity)))
    with writing(place, InputError):
        check_output_folder(place, _MAY_HOLD)
        place.mkdir(parents=True, exist_ok=True)
        file = (place / ROWS).open("a+b", buffering=0)  # nothing is left to be written at the end
    with file:
        with writing(place, GapruneError):
            _lock(file, place)
            if overwrite:
                file.truncate(0)
                for name in _OF_ROWS:
                    (place / name).unlink(missing_ok=True)
            holds_rows = _mended(file)
        if holds_rows:
            _check_same(place, _identity(place), plain)
        rows = read_rows(place)
        with writing(place, GapruneError):
            write_file(place / IDENTITY, to_json(plain, indent=2) + "\n")
        yield Store(place, file, rows)


def read_rows(folder: str | Path) -> list[Row]:
    """Return the rows of a comparison; of two with one key the later one.

    Raises:
        InputError: the folder holds no comparison, or a line of it is no row.
    """
    path = Path(folder) / ROWS
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # what no line break follows is torn
    except OSError as error:
        raise InputError(f"comparison: cannot read {path} ({error.strerror})") from error
    rows: dict[RowKey, Row] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = Row.of(json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"comparison: line {number} of {path} is no row ({error}); "
                "take the line out, or name another folder"
            ) from error
        rows[row.key] = row
    return list(rows.values())


def as_csv(rows: Iterable[Row]) -> str:
    """Return rows as CSV, one a line: `needs` spread over columns, `path` joined by spaces."""
    flat = []
    for row in rows:
        record = row.record()
        needs, path = record.pop("needs"), record.pop("path")
        del record["steps"]  # a list in a list: rows.json has them
        spread = {f"needs_{name}": value for name, value in needs.items()}
        flat.append({**record, "path": " ".join(map(str, path)), **spread})
    if not flat:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _mended(file: io.FileIO) -> bool:
    """Cut off a torn last line (the machine went down); return whether any row is left."""
    file.seek(0)
    content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        file.truncate(len(whole))
    return bool(whole)


def _identity(place: Path) -> dict[str, Any]:
    path = place / IDENTITY
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return dict(found)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"out: {path} is missing or damaged, so nobody knows what its rows compare; name "
            "another folder with --out, or throw those rows away with --overwrite"
        ) from error


def _check_same(place: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    differing = [
        f"{name} ({_short(before.get(name))} there, {_short(now.get(name))} now)"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
    if differing:
        raise InputError(
            f"out: {place} holds rows of another comparison, which differs in "
            f"{', '.join(differing)}; name another folder with --out, or throw those rows away "
            "with --overwrite"
        )


def _short(value: object) -> str:
    text = to_json(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _lock(file: io.FileIO, place: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(
            f"out: another comparison writes to {place} now; wait for it, or name another folder"
        ) from error
