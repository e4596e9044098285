"""Names of the files in a run directory, and one message for a folder that cannot be written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from gaprune.errors import GapruneError

CONFIG, RECORD, HISTORY = "config.toml", "result.json", "history.jsonl"
MASK, PRUNED, FRONT = "mask.safetensors", "pruned.safetensors", "front.safetensors"
REPAIRED = "repaired.safetensors"
REPORT_DATA, REPORT = "report.json", "report.html"
FILES = (CONFIG, RECORD, HISTORY, MASK, PRUNED, REPORT_DATA, REPORT)
CHECKPOINT, LOCK = "checkpoint", "lock"  # see `gaprune.runs.open_directory`
UNWATCHED = "keeps nothing before its end"  # in the lock of such a run
MAY_HOLD = {*FILES, FRONT, REPAIRED, CHECKPOINT}  # what --overwrite may remove


@contextlib.contextmanager
def writing(path: str | Path, kind: type[GapruneError], remedy: str = "") -> Iterator[None]:
    """Turn what the system refuses into one message.

    Args:
        path: where, as the user named it.
        kind: of the error.
        remedy: what can be done after the usual.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise kind(
            f"out: cannot write to {path} ({reason}); "
            f"name a folder that you may write to, with space left{remedy}"
        ) from error
