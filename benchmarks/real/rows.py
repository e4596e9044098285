"""The rows of the benchmark, and a folder that keeps each as soon as it is known."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gaprune.errors import InputError
from gaprune.io.serialization import to_json

FILE = "rows.jsonl"


class Key(NamedTuple):
    """What tells a row from the others."""

    network: str
    sparsity: float
    method: str
    seed: int


@dataclass(frozen=True)
class Row:
    """One network pruned by one method.

    Attributes:
        network, sparsity, method, seed: its `Key`; sparsity is what was asked for.
        score: of the pruned network on the held-out items; None where there is none, see `note`.
        dense: the same of the dense network.
        agreement: of the two networks' outputs for the held-out items: the fraction with the same
            class, or the mean cosine of embeddings.
        seconds: of pruning, from the loaded network to the mask (and its repair), without scoring.
        calibration_seconds: of these, for making the calibration inputs.
        cached: whether inverted calibration inputs were made by an earlier run and only read.
        peak_mb: largest memory of the row's own process up to the end of pruning, MB (1e6 bytes);
            the held-out data is part of it.
        needs: highest rung of the data ladder that the method was shown; `none` where it ranks
            weights alone, although all methods of a network are run with the same calibration inputs.
        provenance: those calibration inputs (`gaprune.records.Provenance`), as plain data.
        validation: agreement on the calibration inputs that judged, before repair.
        removed: fraction of the weights that was removed.
        measure: what the score is, in words.
        held_out: how many held-out items; 0 where the network could not be opened.
        settings: with which it was pruned, where they are not the product's own.
        warnings: what the run said that a reader should know.
        note: why there is no score, or empty.
    """

    network: str
    sparsity: float
    method: str
    seed: int
    score: float | None = None
    dense: float | None = None
    agreement: float | None = None
    seconds: float | None = None
    calibration_seconds: float | None = None
    cached: bool = False
    peak_mb: float | None = None
    needs: str | None = None
    provenance: Mapping[str, Any] | None = None
    validation: float | None = None
    removed: float | None = None
    measure: str = ""
    held_out: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    note: str = ""

    @property
    def key(self) -> Key:
        """What tells it from the other rows."""
        return Key(self.network, self.sparsity, self.method, self.seed)

    def record(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


class Kept:
    """A folder of rows.

    Args:
        folder: made where it is missing. Rows of an earlier run are read; of two with one key the
            later one counts.

    Raises:
        InputError: the folder cannot be used, or a line in it is no row.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._path.open("a+b") as file:
                file.seek(0)
                content = file.read()
                whole = content[: content.rfind(b"\n") + 1]
                file.truncate(len(whole))  # a torn last line, where the machine went down
        except OSError as error:
            raise InputError(
                f"rows: cannot write to {folder} ({error.strerror or error}); name another folder"
            ) from error
        self._rows = {row.key: row for row in map(self._row, whole.splitlines())}

    def find(self, key: Key, settings: Mapping[str, Any]) -> Row | None:
        """Return a row that has a score and was made with the same settings, or None."""
        row = self._rows.get(key)
        if row is None or row.score is None or _plain(row.settings) != _plain(settings):
            return None
        return row

    def add(self, row: Row) -> None:
        """Append a row; it is on the disk when this returns."""
        with self._path.open("ab") as file:
            file.write(f"{to_json(row.record())}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        self._rows[row.key] = row

    def _row(self, line: bytes) -> Row:
        try:
            record = json.loads(line)
            return Row(**{**record, "warnings": tuple(record["warnings"])})
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"rows: a line of {self._path} is no row ({error}); take it out, or name another "
                "folder"
            ) from error


def _plain(settings: Mapping[str, Any]) -> object:
    return json.loads(to_json(settings))
