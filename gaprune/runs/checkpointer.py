"""What a run keeps while it goes on, so that it can go on after any end: calibration inputs, then generations.

Writing may fail, on a full disk for example: the run goes on with a warning, and what was kept
before stays whole.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from typing import Any, NamedTuple

import torch

from gaprune.calibration.calibration_set import CalibrationSet, from_record, to_record
from gaprune.callbacks import Observer
from gaprune.config import Settings
from gaprune.errors import GapruneError, InputError
from gaprune.evaluation.evaluator import ValidationScore
from gaprune.evolution.engine import Evolution
from gaprune.evolution.genome import Individual
from gaprune.evolution.search_plan import SearchPlan
from gaprune.evolution.search_state import SearchState
from gaprune.io.checkpoints import (
    Checkpoint,
    CheckpointFolder,
    DamagedError,
    read_checkpoint,
    write_checkpoint,
)
from gaprune.io.run_files import HISTORY
from gaprune.io.serialization import to_json
from gaprune.models.target import Target
from gaprune.profiling import profiled
from gaprune.records import Generation, as_json
from gaprune.runs.directory import config_text
from gaprune.runs.job import PruneJob
from gaprune.runs.open_directory import OpenRun

FORMAT = 1  # raise it when older checkpoints can no longer be read
START, FIRST = "start", "first"
VERSIONS = ("gaprune", "torch")  # of which another one may give other masks


class SavedSearch(NamedTuple):
    """A search as it was after a generation.

    Attributes:
        search: its state.
        seeds: the one-shot masks.
        validation_scores: mask key → how a seed does on the validation inputs.
        seconds: of the run until then.
    """

    search: SearchState
    seeds: list[Individual]
    validation_scores: dict[str, ValidationScore]
    seconds: float


class SearchCheckpointer:
    """Keeps the generations of one search, the last two of those that are kept.

    Args:
        run_directory: the claimed run directory.
        shelf: where its checkpoints lie; None keeps nothing.
        every: so many generations are between two of them; with 0 they are only read.
        observer: told of what cannot be written, or read.
    """

    def __init__(
        self,
        run_directory: OpenRun | None = None,
        shelf: CheckpointFolder | None = None,
        every: int = 1,
        observer: Observer | None = None,
    ) -> None:
        self._own, self._shelf, self._every, self._observer = run_directory, shelf, every, observer
        self._waiting: SavedSearch | None = None
        self._failed = False
        self._streamed = 0  # generations that are in the folder's history

    def last(self, plan: SearchPlan) -> SavedSearch | None:
        """Read the newest checkpoint of a search under this plan, or return None: there is none.

        Raises:
            GapruneError: all of them are damaged.
        """
        found = None if self._shelf is None else self._shelf.newest(self._warn)
        if found is None:
            return None
        facts, tensors = found
        seeds, validation_scores = [], {}
        for number, one in enumerate(facts["seeds"]):
            bits = tensors[f"seed/{number}"].numpy()
            seeds.append(Individual(bits, plan.layout.total, plan.keep, one["origin"]))
            validation_scores[seeds[-1].key] = ValidationScore(one["agreement"], one["fitness"])
        search = SearchState.from_record(facts["search"], tensors, plan)
        return SavedSearch(search, seeds, validation_scores, facts["seconds"])

    def note(
        self,
        evolution: Evolution,
        seeds: list[Individual],
        validation_scores: dict[str, ValidationScore],
        seconds: float,
    ) -> None:
        """Take notice of a generation that has ended; it is written if its turn has come."""
        if self._shelf is None or not self._every:
            return
        with profiled("checkpoint"):
            self._waiting = SavedSearch(evolution.state(), seeds, validation_scores, seconds)
            self._stream(self._waiting.search.history)
            if self._waiting.search.generation % self._every == 0:
                self.flush()

    def flush(self) -> None:
        """Write the last generation, unless that was done."""
        if self._waiting is None or self._shelf is None or self._own is None:
            return
        with profiled("checkpoint"):
            self._write(self._waiting, self._shelf, self._own)

    def _write(self, waiting: SavedSearch, shelf: CheckpointFolder, run_directory: OpenRun) -> None:
        search, tensors = waiting.search.to_record()
        validation_scores = waiting.validation_scores
        seeds = [{"origin": s.origin, **validation_scores[s.key]._asdict()} for s in waiting.seeds]
        # copied: a seed may be a leader as well, and tensors in a file share no memory
        masks = [torch.from_numpy(seed.bits.copy()) for seed in waiting.seeds]
        tensors |= {f"seed/{number}": mask for number, mask in enumerate(masks)}
        facts = {"search": search, "seeds": seeds, "seconds": waiting.seconds}
        try:
            shelf.write(facts, tensors)
        except OSError as error:
            if not self._failed:
                self._warn(
                    f"checkpoint: generation {search['generation']} cannot be kept in "
                    f"{run_directory.path} ({error.strerror or error}); the search goes on, and what "
                    "was kept before stays"
                )
            self._failed = True
            return
        self._waiting, self._failed, run_directory.keep_on_error = None, False, True

    def _stream(self, history: Sequence[Generation]) -> None:
        """Write what is new of the history, for whoever watches; the first time all of it."""
        if self._own is None:
            return
        new = "".join(f"{to_json(as_json(one))}\n" for one in history[self._streamed :])
        try:
            with (self._own.folder / HISTORY).open("a" if self._streamed else "w") as file:
                file.write(new)
            self._streamed = len(history)
        except OSError:  # checkpoints say what cannot be written; the next time all is written anew
            self._streamed = 0

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Write the last generation whatever ends the block; errors tell how to go on."""
        try:
            yield
        except GapruneError as error:
            self.flush()
            run_directory = self._own
            if (
                run_directory is None
                or not run_directory.keep_files
                or (isinstance(error, InputError) and not run_directory.keep_on_error)
            ):
                raise
            raise type(error)(
                f"{error}; {run_directory.command} goes on from what is kept"
            ) from error
        finally:
            self.flush()

    def _warn(self, text: str) -> None:
        if self._observer is not None:
            self._observer.warning(text)


class Checkpointer:
    """Keeps nothing: the run has no folder, or nothing to go on with.

    Attributes:
        resumed: whether the run goes on from what another process kept.
    """

    resumed = False

    def calibration(self, target: Target, generator: torch.Generator) -> CalibrationSet | None:
        """Return the kept calibration inputs, and set the generator as it was after they were made."""
        del target, generator
        return None

    def save_calibration(
        self, target: Target, settings: Settings, plan: CalibrationSet, generator: torch.Generator
    ) -> None:
        """Keep the calibration inputs and all that must be the same when the run goes on."""

    def first(self, compute: Callable[[], float]) -> float:
        """Return what `compute` returns, or returned: the first sparsity of several searches."""
        return compute()

    def search(self, sparsity: float | None = None) -> SearchCheckpointer:
        """Return what keeps the search of the run, or that at one sparsity of several."""
        del sparsity
        return SearchCheckpointer()

    def give_up(self) -> None:
        """Take notice that going on would come to nothing."""


class FolderCheckpointer(Checkpointer):
    """Keeps a run in the folder that it has claimed.

    Args:
        run_directory: the folder.
        every: generations between two checkpoints.
        observer: told of what cannot be written, or read.
        job: what was asked for, or None for a network in memory.
        start: what another process kept at the start of this run, or None.
    """

    def __init__(
        self,
        run_directory: OpenRun,
        every: int,
        observer: Observer,
        job: PruneJob | None = None,
        start: Checkpoint | None = None,
    ) -> None:
        self._own, self._every, self._observer, self._job = run_directory, every, observer, job
        self._start = start

    @property
    def resumed(self) -> bool:  # type: ignore[override]
        """Whether the run goes on."""
        return self._start is not None

    def calibration(self, target: Target, generator: torch.Generator) -> CalibrationSet | None:
        """Put them together; the tensors are not held twice."""
        if self._start is None:
            return None
        facts, tensors = self._start
        generator.set_state(tensors["generator"])
        return from_record(facts["calibration"], tensors, target)

    def save_calibration(
        self, target: Target, settings: Settings, plan: CalibrationSet, generator: torch.Generator
    ) -> None:
        """Write them once, with the configuration; an earlier run in the folder goes."""
        calibration, tensors = to_record(plan)
        used = settings.model_dump(mode="json")
        facts = {**identity(target), "settings": used, "calibration": calibration}
        try:
            with profiled("checkpoint"):
                self._own.begin(config_text(target, used, self._job))
                tensors = {**tensors, "generator": generator.get_state()}
                write_checkpoint(self._own.checkpoint / START, facts, tensors)
        except OSError as error:
            self._observer.warning(
                f"checkpoint: the calibration inputs cannot be kept in {self._own.path} "
                f"({error.strerror or error}); this run cannot be resumed"
            )
        else:
            self._own.keep_files = True

    def first(self, compute: Callable[[], float]) -> float:
        """Look once for all processes."""
        place = self._own.checkpoint / FIRST
        with suppress(DamagedError):  # or missing: it comes out the same
            return float(read_checkpoint(place).facts["sparsity"])
        found = compute()
        if self._own.keep_files:
            with suppress(OSError):
                write_checkpoint(place, {"sparsity": found}, {})
        return found

    def search(self, sparsity: float | None = None) -> SearchCheckpointer:
        """Of several searches, each has a folder of its run_directory."""
        if not self._own.keep_files:
            return SearchCheckpointer()
        folder = self._own.checkpoint
        shelf = CheckpointFolder(folder if sparsity is None else folder / f"{sparsity:.9g}")
        return SearchCheckpointer(self._own, shelf, self._every, self._observer)

    def give_up(self) -> None:
        """Let the folder go."""
        self._own.keep_files = self._own.keep_on_error = False


def identity(target: Target) -> dict[str, Any]:
    """Return what must be equal for a run to go on as if nothing had happened."""
    built = re.sub(r"0x[0-9a-f]+", "", repr(target.model))  # addresses are of this process
    return {
        "format": FORMAT,
        "versions": versions(),
        "weights_sha256": target.weights_sha256,
        "network": hashlib.sha256(built.encode()).hexdigest(),
        "layers": list(target.layout.names),
        "inputs": target.inputs.facts(),
    }


def versions() -> dict[str, str]:
    """Return the versions here of what decides about the masks."""
    return {name: metadata.version(name) for name in VERSIONS}
