"""A folder of rows: each is written as soon as it is known, so a stopped comparison can go on.

::

    comparison.json    identity: everything that the rows depend on besides their keys
    rows.jsonl         one row per line, appended and synced
    rows.json          rows of the last finished comparison, as one list
    rows.csv           the same as a table
    table.md           medians and spread
    accuracy.svg       accuracy against sparsity; also as .png
    report.html        everything for reading
    config.toml        the last command's options
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from gaprune.calibration.auto import expand_auto
from gaprune.calibration.parse import CalibrationFile, parse_calibration, parse_validation
from gaprune.calibration.provenance import samples_sha256
from gaprune.calibration.samples import Samples
from gaprune.comparison.rows import Row, RowKey
from gaprune.comparison.spec import ComparisonData, ComparisonSpec
from gaprune.config import NEUTRAL, Settings
from gaprune.errors import GapruneError, InputError
from gaprune.io.atomic import check_output_folder, write_file, writing
from gaprune.io.bounded_reading import MAX_LINE, parse_as, parse_json, read_lines, read_object
from gaprune.io.file_hash import content_of
from gaprune.io.manifest import (
    FILES,
    IDENTITY,
    SEAL,
    check_recorded,
    check_sealed,
    file_entries,
    sealed,
)
from gaprune.io.serialization import to_json
from gaprune.models.input_spec import InputSpec
from gaprune.models.target import Target
from gaprune.runs.setup import check_settings, resolve_settings

SCHEMA = 2
ROWS, LIST, CSV = "rows.jsonl", "rows.json", "rows.csv"
TABLE, CONFIG = "table.md", "config.toml"
PLOTS = ("accuracy.svg", "accuracy.png")
REPORT = "report.html"
_DERIVED = (LIST, CSV, TABLE, CONFIG, REPORT, *PLOTS)  # can be made again from rows
_MAY_HOLD = {IDENTITY, ROWS, *_DERIVED}
_ROW = TypeAdapter(Row)
_IN_KEYS = ("sparsity", "seed", "method")  # settings that belong to a row


class Store:
    """An open folder of rows, locked against a second comparison; made by `open_store`.

    `rows` are those that are there, including rows with an error.
    """

    def __init__(self, folder: Path, file: io.FileIO, rows: Iterable[Row]) -> None:
        self.folder = folder
        self._file = file
        self.rows: dict[RowKey, Row] = {row.key: row for row in rows}

    def add(self, row: Row) -> None:
        """Append a row and sync it to the disk, unless an equal one is there.

        Raises:
            GapruneError: the disk is full, or not writable.
        """
        if self.rows.get(row.key) == row:  # an error that occurs again is stored once
            return
        with writing(self.folder, GapruneError):
            left = f"{to_json(sealed(row.record()))}\n".encode()
            while left:  # unbuffered writes may be partial
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())  # the row survives a power cut
        self.rows[row.key] = row

    def list_files(self) -> None:
        """Add the hashes of the files that a report reads to the identity."""
        content = check_sealed(read_object(self.folder / IDENTITY))
        names = [name for name in (ROWS, CONFIG, TABLE) if (self.folder / name).is_file()]
        listed = sealed(content | {FILES: file_entries(self.folder, names)})
        self.write(IDENTITY, to_json(listed, indent=2) + "\n")

    def write(self, name: str, text: str) -> None:
        """Write one of the other files, replacing an earlier one."""
        with writing(self.folder, GapruneError):
            write_file(self.folder / name, text)


@contextmanager
def open_store(
    folder: str | Path, identity: Mapping[str, Any], *, overwrite: bool = False
) -> Iterator[Store]:
    """Open a folder to continue its rows, or create it.

    `identity` is everything that the rows depend on, as plain data; `overwrite` deletes rows that
    are there, and the files made from them.

    Raises:
        InputError: the folder holds other files, or rows of another comparison (the message says
            what differs), or another comparison is writing to it.
        GapruneError: the folder cannot be written.
    """
    path = Path(folder).expanduser().resolve()
    plain = sealed(identity)
    with writing(path, InputError):
        check_output_folder(path, _MAY_HOLD)
        path.mkdir(parents=True, exist_ok=True)
        file = (path / ROWS).open("a+b", buffering=0)  # unbuffered: nothing to flush on close
    with file:
        with writing(path, GapruneError):
            try:
                # released when the process ends, however it ends
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"out: another comparison writes to {path} now; wait for it, or name another "
                    "folder"
                ) from error
            if overwrite:
                file.truncate(0)  # the identity is written below
                for name in (IDENTITY, *_DERIVED):
                    (path / name).unlink(missing_ok=True)
            has_rows = _repair_last_line(file)
        if has_rows:
            _check_same(path, plain)
        rows = read_rows(path)
        with writing(path, GapruneError):
            write_file(path / IDENTITY, to_json(plain, indent=2) + "\n")
        yield Store(path, file, rows)


def read_rows(folder: str | Path) -> list[Row]:
    """Return the rows of a comparison; of two with one key the later one.

    Raises:
        InputError: the folder holds no comparison, or a line of it is no row.
    """
    path, number = Path(folder) / ROWS, 0
    rows: dict[RowKey, Row] = {}
    try:
        check_recorded(path)
        for line in read_lines(path):
            number += 1
            row = parse_as(_ROW, json.dumps(check_sealed(parse_json(line))))
            rows[row.key] = row
    except OSError as error:
        raise InputError(f"comparison: cannot read {path} ({error.strerror})") from error
    except InputError:
        raise
    except ValueError as error:
        raise InputError(
            f"comparison: line {number} of {path} is no row ({error}); "
            "remove the line, or name another folder"
        ) from error
    return list(rows.values())


def flat_records(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return rows as records without nesting: `needs` as columns, `path` joined by spaces."""
    records = []
    for row in rows:
        record = row.record()
        needs, path = record.pop("needs"), record.pop("path")
        del record["steps"]  # nested lists don't fit; rows.json has them
        columns = {f"needs_{name}": value for name, value in needs.items()}
        records.append({**record, "path": " ".join(map(str, path)), **columns})
    return records


def as_csv(rows: Iterable[Row]) -> str:
    """Return rows as CSV, one per line, with the columns of `flat_records`."""
    records = flat_records(rows)
    if not records:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _repair_last_line(file: io.FileIO) -> bool:
    """Remove an incomplete last line (after a crash); return whether any row is left."""
    size = file.seek(0, os.SEEK_END)
    start = file.seek(max(0, size - MAX_LINE))
    complete = start + file.readall().rfind(b"\n") + 1
    if complete < size:
        file.truncate(complete)
    return complete > 0


def _check_same(path: Path, now: Mapping[str, Any]) -> None:
    file = path / IDENTITY
    try:
        before = check_sealed(read_object(file))
    except (OSError, ValueError) as error:
        raise InputError(
            f"out: {file} is missing or damaged, so nobody knows what its rows compare; name "
            "another folder with --out, or throw those rows away with --overwrite"
        ) from error
    differing = [
        f"{name} ({_short(before.get(name))} there, {_short(now.get(name))} now)"
        for name in {**before, **now}
        if name not in (FILES, SEAL) and before.get(name) != now.get(name)
    ]
    if differing:
        raise InputError(
            f"out: {path} holds rows of another comparison, which differs in "
            f"{', '.join(differing)}; name another folder with --out, or throw those rows away "
            "with --overwrite"
        )


def _short(value: object) -> str:
    text = to_json(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def identity_of(target: Target, spec: ComparisonSpec, data: ComparisonData) -> dict[str, Any]:
    """Return what must be equal for rows to be in one table, as plain data.

    The user's files (networks, objectives, calibration inputs) count by their content.
    """
    settings = resolve_settings(check_settings(spec.settings, target.device), target).settings
    schedule = spec.schedule
    if not isinstance(schedule, str):
        schedule = ",".join(f"{step.sparsity}:{step.epochs}" for step in schedule)
    return {
        "schema": SCHEMA,
        "target": target.name,
        "weights_sha256": target.weights_sha256,
        "inputs": target.inputs.facts(),
        "pruned": list(target.layout.names),
        **{
            name: None if samples is None else samples_sha256(samples)
            for name, samples in data._asdict().items()
        },
        **{
            name: value
            for name, value in settings.model_dump(mode="json").items()
            if name not in (*_IN_KEYS, *NEUTRAL)  # neutral: no influence on results
        },
        # what `auto` stands for in this network
        "calibration": list(expand_auto(settings.calibration, target)),
        **{f"training_{name}": value for name, value in asdict(spec.training).items()},
        "epochs": spec.epochs,
        "schedule": schedule,
        "clusters": spec.clusters,
        **{
            name: samples_sha256(Samples(*arrays, name))
            for name, arrays in target.inputs.in_memory.items()
        },
        **{f"file {path}": content_of(path) for path in sorted(set(_files(target, spec.settings)))},
        "gaprune": metadata.version("gaprune"),  # another version may give other rows
        "torch": torch.__version__,
    }


def requested_files(settings: Settings, spec: InputSpec) -> list[CalibrationFile]:
    """Return the files that calibration and validation inputs name; none of them is read.

    Raises:
        InputError: an unknown name of calibration or validation inputs.
    """
    files = list(parse_calibration(settings.calibration, spec).files)
    if file := parse_validation(settings.validation, spec):
        files.append(file)
    return files


def _files(target: Target, settings: Settings) -> Iterator[str]:
    """Yield the paths of files that the user gave."""
    for code in (target.name, settings.objective):
        yield from _existing(code.rpartition(":")[0])
    for request in requested_files(settings, target.inputs):
        # inputs+labels are two paths, unless the plus belongs to one
        yield from _existing(request.path) or [
            path for part in request.path.split("+") for path in _existing(part)
        ]


def _existing(path: str) -> list[str]:
    return [path] if path and Path(path).expanduser().exists() else []
