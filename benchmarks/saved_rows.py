"""The rows of the benchmarks that `benchmarks/rows` keeps: read, and joined by new ones.

A new row replaces the saved one of the same network, sparsity, method, data and seed; saved rows of
other versions are removed, so that no table mixes versions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks import generalisation, peers, quality
from benchmarks.row_store import VERSION
from gaprune.errors import InputError
from gaprune.io.serialization import to_json

ROWS = Path(__file__).parent / "rows"
STAMP = ("version", "machine")
QUALITY, REAL, DOMAINS = "quality", "real-networks", "generalisation"
PRICE, PEERS, LANGUAGE = "price-of-no-data", "peers", "language-models"
FIELDS = {
    QUALITY: tuple(field.name for field in fields(quality.Row)),
    REAL: (
        *("network", "sparsity", "method", "seed", "score", "dense", "agreement", "seconds"),
        *("calibration_seconds", "cached", "peak_mb", "needs", "removed", "measure", "test_count"),
    ),
    DOMAINS: tuple(field.name for field in fields(generalisation.Row) if field.name != "note"),
    PRICE: (
        *("case", "target", "sparsity", "method", "seed", "needs", "accuracy", "agreement"),
        *("evaluations", "epochs", "seconds", "actual", "dense_accuracy"),
    ),
    PEERS: tuple(field.name for field in fields(peers.Row)),
    LANGUAGE: (
        *("network", "text", "sparsity", "method", "calibration", "seed", "perplexity", "dense"),
        *("kl", "seconds", "peak_mb"),
    ),
}
"""Benchmark → fields of its rows that are saved, besides version and machine."""
Saved = Mapping[str, Sequence[Mapping[str, Any]]]  # benchmark → rows


def load_rows(folder: Path | None = None) -> dict[str, list[dict[str, Any]]]:
    """Return the saved rows of every benchmark."""
    paths = {name: (folder or ROWS) / f"{name}.jsonl" for name in FIELDS}
    return {name: read_rows(path) if path.exists() else [] for name, path in paths.items()}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file: a JSON list, or one row a line.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        rows = json.loads(text) if text.startswith("[") else [json.loads(line) for line in lines]
        return [dict(row) for row in rows]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"add: {path} holds no rows ({error})") from error


def add_rows(new: Iterable[Mapping[str, Any]], machine: str, folder: Path | None = None) -> None:
    """Save rows; those of the same identity, and of other versions, are dropped.

    Args:
        new: rows as the benchmarks print them; a row without a figure is not saved.
        machine: words about the machine, for rows that have none.
        folder: folder of the saved rows.
    """
    folder = folder or ROWS
    saved = load_rows(folder)
    for row in new:
        if (row.get("note") and "tool" not in row) or row.get("error"):
            continue
        stamped = {"version": VERSION, "machine": machine, **row}
        name = _benchmark_of(stamped)
        record = {key: stamped[key] for key in dict.fromkeys((*FIELDS[name], *STAMP))}
        saved[name] = [old for old in saved[name] if _identity(old) != _identity(record)]
        saved[name].append(record)
    folder.mkdir(exist_ok=True)
    for name, rows in saved.items():
        current = sorted((row for row in rows if row["version"] == VERSION), key=_identity)
        if current:
            text = "".join(f"{to_json(row)}\n" for row in current)
            (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def _benchmark_of(row: Mapping[str, Any]) -> str:
    for name, wanted in FIELDS.items():
        if row.keys() >= set(wanted):
            return name
    raise InputError(f"add: no benchmark prints rows with the fields {', '.join(row)}")


def _identity(row: Mapping[str, Any]) -> tuple[str, str, str, str, int]:
    network = row["network"] if "network" in row else row.get("case", row["target"])
    given = row.get("calibration", row.get("data", ""))
    if "tool" in row:  # its data follows from the tool
        return network, str(row["sparsity"]), row["tool"], "", row["seed"]
    return network, str(row["sparsity"]), row["method"], given, row["seed"]
