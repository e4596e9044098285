"""A run with one fault, compared with an undisturbed run."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from benchmarks.cluster import faulty_network
from benchmarks.cluster.commands import Command, CommandResult
from gaprune.config import NEUTRAL
from gaprune.io.checkpoints import DamagedError, read_checkpoint

NETWORK = faulty_network.__file__
GENERATIONS = 12
PRUNE = (
    *("prune", f"{NETWORK}:make", "--weights", "net.safetensors", "--range", "0,1", "--out", "run"),
    *("--sparsity", "0.5", "--preset", "black-box", "--objective", f"{NETWORK}:grade"),
    *("--density-search", "0", "--population", "4", "--offspring", "8", "--seed", "1"),
    *("--calibration-count", "64", "--validation-count", "64", "--generations", str(GENERATIONS)),
)
FILES = ("mask.safetensors", "pruned.safetensors")
_RESUMED = re.compile(r"resume: .*generation (\d+)")
_REPORTED = re.compile(r"generation (\d+)/")


class RunOutput(NamedTuple):
    """The result of a run, without times, warnings and worker settings."""

    record: dict[str, Any]
    files: dict[str, bytes]


@dataclass(frozen=True)
class Row:
    """The outcome of one fault.

    Attributes:
        survived: the run continued, or stopped with a clear message and was resumed, and its result
            equals that of the undisturbed run bit for bit; None: the fault could not be tried.
        lost: generations in a complete checkpoint that were computed again.
        recover_s: seconds until the search continued.
        note: remarks.
    """

    survived: bool | None
    lost: int | None
    recover_s: float | None
    note: str = ""


@dataclass(frozen=True)
class FaultCase:
    """A folder with a network and one run that gets a fault.

    Attributes:
        folder: the folder.
        expected: result of the undisturbed run, or None.
        started: commands started so far.
    """

    folder: Path
    expected: RunOutput | None = None
    started: list[Command] = field(default_factory=list)

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.folder / "run"

    @property
    def plan(self) -> Path:
        """The plan of failures, see `faulty_network`."""
        return self.folder / "plan"

    def start(
        self, *arguments: str, env: Mapping[str, str] | None = None, module: str = "gaprune"
    ) -> Command:
        """Start a command in the folder."""
        env = {faulty_network.PLAN: str(self.plan), **(env or {})}
        self.started.append(Command(self.folder, *arguments, env=env, module=module))
        return self.started[-1]

    def prune(self, *more: str, env: Mapping[str, str] | None = None) -> Command:
        """Start `gaprune prune`."""
        return self.start(*PRUNE, *more, env=env)

    def row(self, ended: CommandResult, seconds: float | None, *, survived: bool) -> Row:
        """Return the row of a run that continued without help."""
        finished = ended.code == 0
        return Row(survived and finished and self.is_right(), 0 if finished else None, seconds)

    def resumed(self, before: CommandResult, *more: str, survived: bool, message: str = "") -> Row:
        """Resume a stopped run and return its row.

        Args:
            before: result of the stopped command.
            more: options of `gaprune resume`.
            survived: whether the run stopped as it should.
            message: text that `gaprune resume` must print.
        """
        saved = newest(self.run / "checkpoint")
        reported = max(map(int, _REPORTED.findall(before.err)), default=-1)
        started = time.monotonic()
        command = self.start("resume", "run", *more)
        command.read_until(f"/{GENERATIONS} (")
        seconds = time.monotonic() - started
        ended = command.finish()
        resumed = resumed_from(ended.err)
        right = ended.code == 0 and message in ended.err and self.is_right()
        note = f"{max(0, reported - resumed)} generation(s) were computed again"
        return Row(survived and right, max(0, saved - resumed), seconds, note)

    def is_right(self) -> bool:
        """Return whether the result equals the expected one."""
        return read_output(self.run) == self.expected


@contextmanager
def fault_case(folder: Path, expected: RunOutput | None = None) -> Iterator[FaultCase]:
    """Prepare a folder; at the end kill the commands started in it and remove it."""
    (folder / "plan" / "calls").mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(faulty_network.Network().state_dict(), folder / "net.safetensors")
    case = FaultCase(folder, expected)
    try:
        yield case
    finally:
        for command in case.started:
            command.kill()
        shutil.rmtree(folder, ignore_errors=True)


def read_output(run: Path) -> RunOutput:
    """Read the result of a run."""
    record = json.loads((run / "result.json").read_text(encoding="utf-8"))
    # Hashes of files with times; warnings name the workers that were lost.
    for name in ("seconds", "files", "config_sha256", "sha256", "warnings"):
        record.pop(name, None)
    settings = record["settings"].items()
    record["settings"] = {name: value for name, value in settings if name not in NEUTRAL}
    return RunOutput(record, {name: (run / name).read_bytes() for name in FILES})


def resumed_from(output: str) -> int:
    """Return the generation from which a run resumed; -1 if it started again."""
    return max(map(int, _RESUMED.findall(output)), default=-1)


def newest(folder: Path) -> int:
    """Return the generation of the newest complete checkpoint; -1 if there is none."""
    paths = sorted((path for path in folder.glob("0*") if path.name.isdecimal()), reverse=True)
    for path in paths:
        try:
            return int(read_checkpoint(path).facts["search"]["generation"])
        except DamagedError:
            continue
    return -1
