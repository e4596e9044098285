"""The files of a finished run, read for its report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from gaprune.errors import InputError
from gaprune.io.run_files import CONFIG, HISTORY, PRUNED, RECORD, REPORT_DATA
from gaprune.io.serialization import object_or_empty, text_or_empty

_NEEDED = ("target", "layers", "sparsity", "agreement", "baselines", "provenance", "method")
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "I8": 1, "BOOL": 1}


@dataclass(frozen=True)
class RunFiles:
    """A finished run as it lies on the disk.

    Attributes:
        folder: where.
        record: `result.json`.
        history: lines of `history.jsonl`.
        config: `config.toml`, as text.
        report_data: `report.json`, see `gaprune.report.data`; empty for an older run.
    """

    folder: Path
    record: Mapping[str, Any]
    history: tuple[Mapping[str, Any], ...]
    config: str
    report_data: Mapping[str, Any]

    @cached_property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Tensor of the pruned network → its values, and bytes of one; empty where unreadable."""
        try:
            with safe_open(self.folder / PRUNED, "pt") as file:
                found = {}
                for name in file.keys():  # noqa: SIM118 - no mapping
                    part = file.get_slice(name)
                    values = 1
                    for one in part.get_shape():
                        values *= one
                    found[name] = values, _BYTES.get(part.get_dtype(), 4)
                return found
        except (OSError, SafetensorError):
            return {}

    def tensors(self, file: str, names: list[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield some tensors of a safetensors file, one at a time; nothing where unreadable."""
        try:
            with safe_open(self.folder / file, "pt") as opened:
                there = set(opened.keys())
                for name in names:
                    if name in there:
                        yield name, opened.get_tensor(name)
        except (OSError, SafetensorError):
            return


def read_run(folder: Path) -> RunFiles:
    """Read the folder of a finished run.

    Raises:
        InputError: there is none, or its record is damaged; the message says so.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"run: {folder} has no {RECORD} ({error.strerror}); name the folder of a run that has "
            "ended (gaprune watch shows one that has not, gaprune resume goes on with it)"
        ) from error
    except ValueError as error:
        raise InputError(f"run: {folder / RECORD} is damaged ({error})") from error
    if not isinstance(record, dict) or any(name not in record for name in _NEEDED):
        raise InputError(f"run: {folder / RECORD} is no record of a pruning run")
    return RunFiles(
        folder=folder,
        record=record,
        history=tuple(_lines(folder / HISTORY)),
        config=text_or_empty(folder / CONFIG),
        report_data=object_or_empty(text_or_empty(folder / REPORT_DATA)),
    )


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in text_or_empty(path).splitlines():
        if found := object_or_empty(line):
            yield found
