"""The status of a run, read from its directory by another process.

A search appends to `history.jsonl` while it runs; the result is written at its end.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from gaprune.errors import InputError
from gaprune.io.lock import NO_CHECKPOINTS, lock_owner
from gaprune.io.run_files import CHECKPOINT, CONFIG, HISTORY, LOCK, RECORD, read_record
from gaprune.io.serialization import object_or_empty, text_or_empty
from gaprune.records import Generation

RUNNING, ENDED, STOPPED = "running", "ended", "stopped"
_FIELDS = {attribute.name for attribute in fields(Generation)}


@dataclass(frozen=True)
class RunStatus:
    """A run at one moment."""

    state: str  # `running`, `ended` (there is a result) or `stopped` (there is none)
    history: tuple[Generation, ...] = ()  # the generations so far
    record: Mapping[str, Any] = field(default_factory=dict)  # of a run that has ended
    config: Mapping[str, Any] = field(default_factory=dict)  # empty before the first checkpoint
    owner: str | None = None  # `process NUMBER` of a running run
    silent: bool = False  # whether a running run writes nothing before its end

    @property
    def total(self) -> int | None:
        """The planned number of generations, if it is known."""
        planned = self.config.get("generations")
        return planned if isinstance(planned, int) else None


def read_status(path: str | Path) -> RunStatus:
    """Read the status of a run.

    Raises:
        InputError: the folder holds no run, or one of an older version.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise InputError(f"run: there is no folder {path}; name a run directory")
    owner = lock_owner(folder / CHECKPOINT / LOCK)
    record = object_or_empty(text_or_empty(folder / RECORD))
    try:
        config = tomllib.loads(text_or_empty(folder / CONFIG))
    except ValueError:
        config = {}
    if owner is None and not record and not config:
        raise InputError(f"run: {path} holds no run; name a run directory")
    if owner is not None and NO_CHECKPOINTS in text_or_empty(folder / CHECKPOINT / LOCK):
        return RunStatus(RUNNING, owner=owner, silent=True)  # the files are of an earlier run
    history = tuple(_generations(text_or_empty(folder / HISTORY)))
    if owner is not None:
        return RunStatus(RUNNING, history, {}, config, owner)
    if not record:
        return RunStatus(STOPPED, history, {}, config)
    return RunStatus(ENDED, history, read_record(folder), config)


def _generations(text: str) -> Iterator[Generation]:
    for line in text.split("\n")[:-1]:  # a line without its line break is being written
        record = object_or_empty(line)
        try:
            yield Generation(**{name: record[name] for name in record if name in _FIELDS})
        except TypeError:
            continue
