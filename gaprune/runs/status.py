"""The status of a run, read from its directory by another process.

A search appends to `history.jsonl` while it runs; the result is written at its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gaprune.errors import InputError
from gaprune.io.lock import lock_owner, writes_no_checkpoints
from gaprune.io.manifest import check_recorded
from gaprune.io.run_files import (
    CHECKPOINT,
    CONFIG,
    HISTORY,
    LOCK,
    RECORD,
    read_config,
    read_history,
    read_record,
)
from gaprune.records import Generation

RUNNING, ENDED, STOPPED = "running", "ended", "stopped"


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
        InputError: the folder holds no run, a damaged one, or one of an older version.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise InputError(f"run: there is no folder {path}; name a run directory")
    owner = lock_owner(folder / CHECKPOINT / LOCK)
    config = read_config(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    ended = (folder / RECORD).is_file()
    if owner is None and not ended and not config:
        raise InputError(f"run: {path} holds no run; name a run directory")
    if owner is not None and writes_no_checkpoints(folder / CHECKPOINT / LOCK):
        return RunStatus(RUNNING, owner=owner, silent=True)  # the files are of an earlier run
    if owner is None and ended:
        record = read_record(folder)
        check_recorded(folder / HISTORY)
        return RunStatus(ENDED, read_history(folder), record, config)
    state = STOPPED if owner is None else RUNNING
    return RunStatus(state, read_history(folder), {}, config, owner)
