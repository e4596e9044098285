"""A run of another process as it lies on the disk: whether it goes on, and how far it is.

A search writes `history.jsonl` line by line while it goes on; the result comes at its end.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from gaprune.errors import InputError
from gaprune.io.lock import NO_CHECKPOINTS, lock_note, lock_owner
from gaprune.io.run_files import CHECKPOINT, CONFIG, HISTORY, LOCK, RECORD
from gaprune.io.serialization import object_or_empty, text_or_empty
from gaprune.records import Generation

RUNNING, ENDED, STOPPED = "running", "ended", "stopped"
_FIELDS = {one.name for one in fields(Generation)}


@dataclass(frozen=True)
class RunStatus:
    """What is seen of a run at one moment.

    Attributes:
        state: `running`, `ended` (there is a result) or `stopped` (there is none).
        history: the generations so far.
        record: `result.json` of a run that has ended, else empty.
        config: `config.toml`, or empty where nothing is kept yet.
        owner: the process that is at work, in words, or None.
        silent: whether a run that goes on keeps nothing before its end.
    """

    state: str
    history: tuple[Generation, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    owner: str | None = None
    silent: bool = False

    @property
    def total(self) -> int | None:
        """How many generations are planned, if that is known."""
        planned = self.config.get("generations")
        return planned if isinstance(planned, int) else None


def read_status(folder: str | Path) -> RunStatus:
    """Look at a run.

    Raises:
        InputError: the folder is none of a run.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise InputError(f"run: there is no folder {folder}; name the folder of a run")
    owner = lock_owner(place / CHECKPOINT / LOCK)
    record = object_or_empty(text_or_empty(place / RECORD))
    config = _toml(text_or_empty(place / CONFIG))
    if owner is None and not record and not config:
        raise InputError(f"run: {folder} holds no run; name the folder of a run")
    state = RUNNING if owner is not None else ENDED if record else STOPPED
    history = tuple(_generations(text_or_empty(place / HISTORY)))
    if state == RUNNING and lock_note(place / CHECKPOINT / LOCK) == NO_CHECKPOINTS:
        return RunStatus(state, owner=owner, silent=True)  # what lies there is an earlier run's
    return RunStatus(state, history, {} if state == RUNNING else record, config, owner)


def _generations(text: str) -> Iterator[Generation]:
    for line in text.split("\n")[:-1]:  # what no line break follows is being written
        found = object_or_empty(line)
        try:
            yield Generation(**{name: one for name, one in found.items() if name in _FIELDS})
        except TypeError:
            continue


def _toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except ValueError:
        return {}
