"""Names of the files in a run directory (see `gaprune.runs.directory`), and reading its record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gaprune.errors import InputError

CONFIG, RECORD, HISTORY = "config.toml", "result.json", "history.jsonl"
MASK, PRUNED, FRONT = "mask.safetensors", "pruned.safetensors", "front.safetensors"
REPAIRED = "repaired.safetensors"
REPORT_DATA, REPORT = "report.json", "report.html"
FILES = (CONFIG, RECORD, HISTORY, MASK, PRUNED, REPORT_DATA, REPORT)
CHECKPOINT, LOCK = "checkpoint", "lock"
MAY_HOLD = {*FILES, FRONT, REPAIRED, CHECKPOINT}  # what --overwrite may remove
RESULT_SCHEMA = 2  # of `result.json`; gaprune up to 0.2 wrote 1


def read_record(folder: Path) -> dict[str, Any]:
    """Return `result.json`; InputError if it is missing, damaged or of another version."""
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"run: {folder} has no {RECORD} ({error.strerror}); name a run that has ended (gaprune "
            "watch shows one that has not, gaprune resume continues it)"
        ) from error
    except ValueError as error:
        raise InputError(f"run: {path} is damaged ({error}); prune again") from error
    if not isinstance(record, dict) or "layers" not in record:
        raise InputError(f"run: {path} is not the result of a pruning run")
    if record.get("schema") != RESULT_SCHEMA:
        versions = record.get("versions")
        version = versions.get("gaprune", "?") if isinstance(versions, dict) else "?"
        raise InputError(
            f"run: {path} was written by gaprune {version} (schema {record.get('schema')}; this "
            f"version reads {RESULT_SCHEMA}); prune again, or use gaprune {version}"
        )
    return record
