"""Names of the files in a run directory (see `gaprune.runs.directory`), and reading its record."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from gaprune.errors import InputError
from gaprune.io.bounded_reading import (
    parse_as,
    read_lines,
    read_object,
    read_toml,
    reason,
)
from gaprune.io.manifest import FILES as LISTED
from gaprune.io.manifest import RECORD, check_recorded, check_sealed, sha256_of_data
from gaprune.records import BaselineScore, Generation, LayerCount, Provenance

__all__ = ["RECORD"]  # with the other names of files, for readers
CONFIG, HISTORY = "config.toml", "history.jsonl"
MASK, PRUNED, FRONT = "mask.safetensors", "pruned.safetensors", "front.safetensors"
REPAIRED, COMPENSATED = "repaired.safetensors", "compensated.safetensors"
REPORT_DATA, REPORT = "report.json", "report.html"
FILES = (CONFIG, RECORD, HISTORY, MASK, PRUNED, REPORT_DATA, REPORT)
CHECKPOINT, LOCK = "checkpoint", "lock"
MAY_HOLD = {*FILES, FRONT, REPAIRED, COMPENSATED, CHECKPOINT}  # what --overwrite may remove
RESULT_SCHEMA = 2  # of `result.json`; gaprune up to 0.2 wrote 1
CONFIG_SHA256 = "config_sha256"  # key of `result.json`
MAY_CHANGE = (
    "target",
    "weights",
    "weights_key",
)  # settings whose content is checked by another hash


@dataclass(frozen=True)
class _Repaired:
    validation: float
    accuracy: float | None
    in_loop: bool
    changed: list[str]
    skipped: list[str]


@dataclass(frozen=True)
class _Entry:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Sparsity:
    asked: float
    actual: float


@dataclass(frozen=True)
class _Macs:
    dense: int | None
    kept: int | None


@dataclass(frozen=True)
class _Agreement:
    calibration: float
    validation: float


@dataclass(frozen=True)
class _Accuracy:
    dense: float | None
    pruned: float | None


@dataclass(frozen=True)
class _Perplexity:
    dense: float
    pruned: float


@dataclass(frozen=True)
class _Latency:
    asked: float
    predicted: float | None
    measured: float | None
    speed_up: tuple[float, float, float] | None
    dense_ms: float
    compact_ms: float
    runtime: str
    batch: int
    threads: int
    budget_macs: float


@dataclass(frozen=True)
class _Point:
    sparsity: float
    validation: float


@dataclass(frozen=True)
class _Record:
    """The types in `result.json` on which its readers rely."""

    target: str
    origin: str
    weights_sha256: str
    method: str
    preset: str | None
    made_by: str
    sparsity: _Sparsity
    budget: str
    macs: _Macs
    layers: list[LayerCount]
    agreement: _Agreement
    accuracy: _Accuracy
    baselines: dict[str, BaselineScore]
    best_baseline: str | None
    gain: float | None
    provenance: Provenance
    repaired: _Repaired | None
    front: list[_Point]
    trials: list[_Point]
    stopped: str
    evaluations: int
    seconds: float
    seed: int
    settings: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, _Entry]
    config_sha256: str
    parameters: int | None = None  # not in every record of schema 2, as the following
    compensated: _Repaired | None = None
    latency: _Latency | None = None
    perplexity: _Perplexity | None = None
    warnings: list[str] = field(default_factory=list)
    profile: dict[str, Any] | None = None


_RECORD, _GENERATION = TypeAdapter(_Record), TypeAdapter(Generation)


def read_record(folder: Path) -> dict[str, Any]:
    """Return the content of `result.json`, of which hash and types are checked.

    Raises:
        InputError: the run hasn't ended, the file is damaged, or another version wrote it.
    """
    path = folder / RECORD
    try:
        record = read_object(path)
        _check_version(record, path)
        record = check_sealed(record)
        parse_as(_RECORD, json.dumps(record))
    except FileNotFoundError as error:
        raise InputError(
            f"run: {folder} has no {RECORD}; name a run that has ended (gaprune watch shows one "
            "that has not, gaprune resume continues it)"
        ) from error
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"run: {path} is damaged ({reason(error)}); prune again") from error
    return record


def _check_version(record: dict[str, Any], path: Path) -> None:
    if "layers" not in record:
        raise InputError(f"run: {path} is not the result of a pruning run")
    if record.get("schema") != RESULT_SCHEMA:
        versions = record.get("versions")
        version = versions.get("gaprune", "?") if isinstance(versions, dict) else "?"
        schema = str(record.get("schema"))[:20]
        raise InputError(
            f"run: {path} was written by gaprune {str(version)[:20]} (schema {schema}; this "
            f"version reads {RESULT_SCHEMA}); prune again, or use that version"
        )


def check_run(folder: Path) -> dict[str, Any]:
    """Return the content of `result.json`, after checking the files of a finished run.

    Files may be missing.

    Raises:
        InputError: one is not what was written; or as `read_record`.
    """
    record = read_record(folder)
    check_run_files(folder, record)
    if (folder / CONFIG).is_file():
        read_run_config(folder, record)
    return record


def check_run_files(folder: Path, record: dict[str, Any]) -> None:
    """Raise InputError if a file that `result.json` lists is there and is not what was written."""
    for name in sorted(record[LISTED].keys() & MAY_HOLD):
        check_recorded(folder / name)


def read_run_config(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Return the settings in `config.toml` of a finished run.

    Target and weights may be edited: they are checked by the hash of the dense network.

    Raises:
        InputError: the file is missing or damaged, or other settings differ from those of the run.
    """
    config = read_config(folder / CONFIG)
    if config_sha256(config) != record[CONFIG_SHA256]:
        raise InputError(
            f"run: {folder / CONFIG} was changed after the run; only {' and '.join(MAY_CHANGE)} "
            "may differ; undo the change, or prune again"
        )
    return config


def read_config(path: Path) -> dict[str, Any]:
    """Return the settings a TOML file states.

    Raises:
        InputError: the file is missing or is not TOML.
    """
    try:
        return read_toml(path)
    except OSError as error:
        raise InputError(f"config: cannot read {path} ({error.strerror})") from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError too
        raise InputError(f"config: {path} is not valid TOML: {error}") from error


def config_sha256(config: dict[str, Any]) -> str:
    """Return the SHA-256 of settings without those in `MAY_CHANGE`."""
    settings = {key: value for key, value in config.items() if key not in MAY_CHANGE}
    return sha256_of_data(json.loads(json.dumps(settings, default=str)))  # TOML has dates


def read_history(folder: Path) -> tuple[Generation, ...]:
    """Return the generations in `history.jsonl`; a last line that is being written is left out.

    Raises:
        InputError: a line is no generation.
    """
    path = folder / HISTORY
    history: list[Generation] = []
    try:
        if path.is_file():
            history.extend(parse_as(_GENERATION, line) for line in read_lines(path))
    except (OSError, ValueError) as error:
        raise InputError(
            f"run: line {len(history) + 1} of {path} is damaged ({reason(error)}); prune again"
        ) from error
    return tuple(history)
