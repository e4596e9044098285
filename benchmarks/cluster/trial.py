"""One run that is disturbed, compared with one that was not."""

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
from benchmarks.cluster.commands import Command, Ended
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


class Found(NamedTuple):
    """What a run found, without what depends on time and on who worked."""

    record: dict[str, Any]
    files: dict[str, bytes]


@dataclass(frozen=True)
class Row:
    """What came of one fault.

    Attributes:
        survived: the run went on, or ended with a clear message and went on later, and found in the
            end what the undisturbed run finds, bit for bit; None where it could not be tried.
        lost: generations that were kept whole and computed again all the same.
        recover_s: seconds until the search went on.
        note: more.
    """

    survived: bool | None
    lost: int | None
    recover_s: float | None
    note: str = ""


@dataclass(frozen=True)
class Trial:
    """A folder with a network in which one run is disturbed.

    Attributes:
        place: the folder.
        expected: what is to be found, as far as that is known.
        started: commands until now.
    """

    place: Path
    expected: Found | None = None
    started: list[Command] = field(default_factory=list)

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.place / "run"

    @property
    def plan(self) -> Path:
        """What is to go wrong, see `faulty_network`."""
        return self.place / "plan"

    def start(
        self, *arguments: str, env: Mapping[str, str] | None = None, module: str = "gaprune"
    ) -> Command:
        """Start a command in the folder."""
        env = {faulty_network.PLAN: str(self.plan), **(env or {})}
        self.started.append(Command(self.place, *arguments, env=env, module=module))
        return self.started[-1]

    def prune(self, *more: str, env: Mapping[str, str] | None = None) -> Command:
        """Start the run."""
        return self.start(*PRUNE, *more, env=env)

    def row(self, ended: Ended, seconds: float | None, *, survived: bool) -> Row:
        """Return the row of a run that went on by itself."""
        whole = ended.code == 0
        return Row(survived and whole and self.is_right(), 0 if whole else None, seconds)

    def resumed(self, before: Ended, *more: str, survived: bool, said: str = "") -> Row:
        """Go on with a run that has ended, and return its row.

        Args:
            before: what the run did until then.
            more: options.
            survived: whether that was as it should be.
            said: what the command must say.
        """
        kept = newest(self.run / "checkpoint")
        reported = max(map(int, _REPORTED.findall(before.err)), default=-1)
        started = time.monotonic()
        command = self.start("resume", "run", *more)
        command.read_until(f"/{GENERATIONS} (")
        seconds = time.monotonic() - started
        ended = command.finish()
        begins = begin_of(ended.err)
        right = ended.code == 0 and said in ended.err and self.is_right()
        note = f"{max(0, reported - begins)} generation(s) were computed again"
        return Row(survived and right, max(0, kept - begins), seconds, note)

    def is_right(self) -> bool:
        """Tell whether the run has found what is expected."""
        return found_in(self.run) == self.expected


@contextmanager
def trial(place: Path, expected: Found | None = None) -> Iterator[Trial]:
    """Set a folder up; what was started in it is ended, and the folder removed."""
    (place / "plan" / "calls").mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(faulty_network.Network().state_dict(), place / "net.safetensors")
    one = Trial(place, expected)
    try:
        yield one
    finally:
        for command in one.started:
            command.kill()
        shutil.rmtree(place, ignore_errors=True)


def found_in(run: Path) -> Found:
    """Read the result of a run."""
    record = json.loads((run / "result.json").read_text(encoding="utf-8"))
    del record["seconds"]
    settings = record["settings"].items()
    record["settings"] = {name: value for name, value in settings if name not in NEUTRAL}
    return Found(record, {name: (run / name).read_bytes() for name in FILES})


def begin_of(said: str) -> int:
    """Return after which generation a resumed run went on; -1 where it began anew."""
    return max(map(int, _RESUMED.findall(said)), default=-1)


def newest(folder: Path) -> int:
    """Return the generation of the newest whole checkpoint; -1 where there is none."""
    there = sorted((path for path in folder.glob("0*") if path.name.isdecimal()), reverse=True)
    for path in there:
        try:
            return int(read_checkpoint(path).facts["search"]["generation"])
        except DamagedError:
            continue
    return -1
