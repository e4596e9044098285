"""The files of a finished run, read for its report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from gaprune.errors import InputError
from gaprune.io.bounded_reading import read_object, reason
from gaprune.io.run_files import CONFIG, PRUNED, REPORT_DATA, check_run, read_history
from gaprune.io.tensor_files import open_tensors

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
            with open_tensors(self.folder / PRUNED) as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                return {
                    name: (prod(part.get_shape()), _BYTES.get(part.get_dtype(), 4))
                    for name, part in slices.items()
                }
        except (OSError, ValueError, SafetensorError):
            return {}

    def tensors(self, file: str, names: list[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield some tensors of a safetensors file, one at a time; nothing where unreadable."""
        try:
            with open_tensors(self.folder / file) as opened:
                there = set(opened.keys())
                for name in names:
                    if name in there:
                        yield name, opened.get_tensor(name)
        # A page without images is better than no page.
        except (OSError, ValueError, SafetensorError):
            return


def read_run(folder: Path) -> RunFiles:
    """Read the directory of a finished run.

    Raises:
        InputError: there is none, a file is not what was written, or another version wrote it.
    """
    record = check_run(folder)
    config, report_data = "", {}
    try:
        if (folder / REPORT_DATA).is_file():
            report_data = read_object(folder / REPORT_DATA)
        if (folder / CONFIG).is_file():
            config = (folder / CONFIG).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"run: cannot read a file of {folder} ({reason(error)})") from error
    return RunFiles(
        folder=folder,
        record=record,
        history=tuple(vars(generation) for generation in read_history(folder)),
        config=config,
        report_data=report_data,
    )
