"""The files of a finished run, read for its report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from gaprune.errors import InputError
from gaprune.io.run_files import CONFIG, HISTORY, PRUNED, RECORD, REPORT_DATA, read_record
from gaprune.io.serialization import object_or_empty, text_or_empty

_NEEDED = ("target", "layers", "sparsity", "agreement", "baselines", "provenance", "method")
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "I8": 1, "BOOL": 1}


@dataclass(frozen=True)
class RunFiles:
    """The files of a finished run."""

    folder: Path  # the run directory
    record: Mapping[str, Any]  # `result.json`
    history: tuple[Mapping[str, Any], ...]  # lines of `history.jsonl`
    config: str  # `config.toml`, as text
    # `report.json`, see `gaprune.report.data`; empty for an older run
    report_data: Mapping[str, Any]

    @cached_property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Name of each tensor of the pruned network → its elements, and bytes of each."""
        try:
            # Only the header is read: shapes and types are enough for sizes.
            with safe_open(self.folder / PRUNED, "pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                return {
                    name: (prod(part.get_shape()), _BYTES.get(part.get_dtype(), 4))
                    for name, part in slices.items()
                }
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
        # A page without images is better than no page.
        except (OSError, SafetensorError):
            return


def read_run(folder: Path) -> RunFiles:
    """Read the directory of a finished run; raise InputError without a complete record."""
    record = read_record(folder)
    if missing := [name for name in _NEEDED if name not in record]:
        raise InputError(f"run: {folder / RECORD} is damaged: it lacks {missing[0]}; prune again")
    return RunFiles(
        folder=folder,
        record=record,
        history=tuple(_lines(folder / HISTORY)),
        config=text_or_empty(folder / CONFIG),
        report_data=object_or_empty(text_or_empty(folder / REPORT_DATA)),
    )


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in text_or_empty(path).splitlines():
        # An interrupted run may end in half a line.
        if generation := object_or_empty(line):
            yield generation
