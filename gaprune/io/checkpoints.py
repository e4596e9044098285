"""The checkpoints of one search: numbered, the last two kept, the newest whole one read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gaprune.errors import GapruneError
from gaprune.io.atomic_folder import (
    Checkpoint,
    DamagedError,
    read_checkpoint,
    remove_checkpoint,
    remove_rests,
    write_checkpoint,
)

KEPT = 2
DIGITS = 6


class CheckpointFolder:
    """Numbered bundles in a folder, which may be missing as long as there are none.

    Args:
        folder: where they lie; other names in it are left alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Add a bundle; the oldest beyond `KEPT` is removed once the new one is on the disk.

        Raises:
            OSError: it cannot be written; those that are there stay.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_rests(self.folder)
        there = self._there()
        number = int(there[-1].name) + 1 if there else 1
        write_checkpoint(self.folder / f"{number:0{DIGITS}d}", facts, tensors)
        for old in there[: 1 - KEPT]:
            with contextlib.suppress(OSError):  # in the way of nobody
                remove_checkpoint(old)

    def newest(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """Read the newest bundle that is whole; None where none was ever written.

        Args:
            warn: told of a damaged one; it is renamed and no longer counted.

        Raises:
            GapruneError: there are some and all are damaged.
        """
        there = self._there()
        reasons: list[str] = []
        for place in reversed(there):
            try:
                found = read_checkpoint(place)
            except DamagedError as error:
                reasons.append(str(error))
                continue
            for reason, damaged in zip(reasons, reversed(there), strict=False):
                warn(f"checkpoint: {reason}; the one before is used")
                with contextlib.suppress(OSError):
                    damaged.rename(damaged.with_name(f"{damaged.name}.damaged"))
            return found
        if reasons:
            raise GapruneError(
                f"checkpoint: none of the {len(reasons)} kept can be used ({'; '.join(reasons)}); "
                "start the run again"
            )
        return None

    def _there(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        named = (place for place in self.folder.iterdir() if place.name.isdecimal())
        return sorted((place for place in named if place.is_dir()), key=lambda one: int(one.name))
