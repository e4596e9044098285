"""Checkpoints of a run: the calibration inputs first, then the search after every generation.

Writing may fail, on a full disk for example. The run then continues with a warning, and earlier
checkpoints stay as they are.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
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
from gaprune.io.checkpoints import Checkpoint, read_newest, write_checkpoint, write_next
from gaprune.io.lock import NO_CHECKPOINTS
from gaprune.io.run_files import HISTORY
from gaprune.io.serialization import to_json
from gaprune.models.target import Target
from gaprune.profiling import profiled
from gaprune.runs.directory import config_text
from gaprune.runs.job import PruneJob
from gaprune.runs.open_directory import OpenRun

FORMAT = 2  # of checkpoints; 1 was written by gaprune 0.1 and 0.2
START = "start"  # folder in `checkpoint/`
VERSIONS = ("gaprune", "torch")  # packages of which another version may give other masks


class SavedSearch(NamedTuple):
    """A search after a generation."""

    state: SearchState
    seeds: list[Individual]  # the one-shot masks
    validation_scores: dict[str, ValidationScore]  # of the seeds, by mask key
    seconds: float  # of the run until then


class Checkpointer:
    """Writes and reads the checkpoints of a run, one search at a time.

    Without a run directory nothing is written; else a checkpoint every `every` generations, 0 for
    none. `start` is the first checkpoint of a run that is resumed.
    """

    def __init__(
        self,
        run_directory: OpenRun | None = None,
        every: int = 0,
        observer: Observer | None = None,
        job: PruneJob | None = None,
        start: Checkpoint | None = None,
    ) -> None:
        if run_directory is not None and start is None and not every:
            run_directory.lock.add_note(NO_CHECKPOINTS)  # for `gaprune watch`
            run_directory = None
        self._run_directory, self._every, self._job, self._start = run_directory, every, job, start
        self._warn = (observer or Observer()).warning
        self._open_search(None)

    def _open_search(self, folder: Path | None) -> None:
        self._folder = folder  # of the checkpoints of one search; None writes none
        self._pending: SavedSearch | None = None  # the last generation, if it is not yet written
        self._write_failed = False
        self._num_streamed = 0  # generations in `history.jsonl`

    def load_calibration(self, target: Target, generator: torch.Generator) -> CalibrationSet | None:
        """Return the saved calibration inputs, and set the generator to its state after them."""
        if self._start is None:
            return None
        facts, tensors = self._start
        generator.set_state(tensors["generator"])
        return from_record(facts["calibration"], tensors, target)

    def save_calibration(
        self,
        target: Target,
        settings: Settings,
        calibration_set: CalibrationSet,
        generator: torch.Generator,
    ) -> None:
        """Write the calibration inputs and the configuration; an earlier run is removed."""
        run = self._run_directory
        if run is None:
            return
        calibration, tensors = to_record(calibration_set)
        # Settings as used, defaults filled in: another version may have other defaults.
        used = settings.model_dump(mode="json")
        facts = {**fingerprint(target), "settings": used, "calibration": calibration}
        try:
            with profiled("checkpoint"):
                run.begin(config_text(target, used, self._job))
                tensors = {**tensors, "generator": generator.get_state()}
                write_checkpoint(run.checkpoint / START, facts, tensors)
            run.keep_files = True
        except OSError as error:
            self._warn(
                f"checkpoint: the calibration inputs cannot be saved in {run.path} "
                f"({error.strerror or error}); this run cannot be resumed"
            )

    def load_search(self, plan: SearchPlan, sparsity: float | None = None) -> SavedSearch | None:
        """Begin a search, and read its newest checkpoint; GapruneError if all are damaged.

        `sparsity` is that of one search of several; None if the run has only one.
        """
        # Without the calibration inputs on the disk, a checkpoint of the search is of no use.
        run, name = self._run_directory, "" if sparsity is None else f"{sparsity:.9g}"
        folder = None if run is None or not run.keep_files else run.checkpoint / name
        self._open_search(folder)
        checkpoint = None if folder is None else read_newest(folder, self._warn)
        if checkpoint is None:
            return None
        facts, tensors = checkpoint
        seeds, validation_scores = [], {}
        for number, seed in enumerate(facts["seeds"]):
            bits = tensors[f"seed/{number}"].numpy()
            seeds.append(Individual(bits, plan.layout.total, plan.keep, seed["origin"]))
            validation_scores[seeds[-1].key] = ValidationScore(seed["agreement"], seed["fitness"])
        state = SearchState.from_record(facts["search"], tensors, plan)
        return SavedSearch(state, seeds, validation_scores, facts["seconds"])

    def record_generation(
        self,
        evolution: Evolution,
        seeds: list[Individual],
        validation_scores: dict[str, ValidationScore],
        seconds: float,
    ) -> None:
        """Record a finished generation; write a checkpoint every `every` generations."""
        run = self._run_directory
        if run is None or self._folder is None or not self._every:
            return
        with profiled("checkpoint"):
            state = evolution.state()
            self._pending = SavedSearch(state, seeds, validation_scores, seconds)
            new = state.history[self._num_streamed :]
            try:
                with (run.folder / HISTORY).open("a" if self._num_streamed else "w") as file:
                    file.writelines(f"{to_json(asdict(record))}\n" for record in new)
                self._num_streamed = len(state.history)
            except OSError:  # the checkpoint warns; next time the whole history is written
                self._num_streamed = 0
            if state.generation % self._every == 0:
                self._write_pending()

    def _write_pending(self) -> None:
        """Write a checkpoint of the last generation, unless there is one."""
        pending, folder, run = self._pending, self._folder, self._run_directory
        if pending is None or folder is None or run is None:
            return
        with profiled("checkpoint"):
            facts, tensors = pending.state.to_record()
            scores = pending.validation_scores
            seeds = [{"origin": s.origin, **scores[s.key]._asdict()} for s in pending.seeds]
            # Copied: a seed may lead the search as well, and safetensors refuses shared memory.
            masks = [torch.from_numpy(seed.bits.copy()) for seed in pending.seeds]
            tensors |= {f"seed/{number}": mask for number, mask in enumerate(masks)}
            try:
                content = {"search": facts, "seeds": seeds, "seconds": pending.seconds}
                write_next(folder, content, tensors)
                self._pending, self._write_failed, run.keep_on_error = None, False, True
            except OSError as error:
                if not self._write_failed:
                    self._warn(
                        f"checkpoint: generation {facts['generation']} cannot be saved in "
                        f"{run.path} ({error.strerror or error}); the search continues, and "
                        "earlier checkpoints stay"
                    )
                self._write_failed = True

    @contextmanager
    def saving_at_exit(self) -> Iterator[None]:
        """Write the last generation however the block ends; an error says how to resume."""
        try:
            yield
        except GapruneError as error:
            self._write_pending()
            run = self._run_directory
            if run is None or not (
                run.keep_on_error if isinstance(error, InputError) else run.keep_files
            ):
                raise
            raise type(error)(f"{error}; {run.command} continues from the checkpoint") from error
        finally:
            self._write_pending()

    def discard(self) -> None:
        """Remove the run directory at the end: resuming would end the same way."""
        if self._run_directory is not None:
            self._run_directory.keep_files = self._run_directory.keep_on_error = False


def fingerprint(target: Target) -> dict[str, Any]:
    """Return what must be equal for a run to continue with the same result."""
    built = re.sub(r"0x[0-9a-f]+", "", repr(target.model))  # addresses differ between processes
    return {
        "format": FORMAT,
        "versions": {name: metadata.version(name) for name in VERSIONS},
        "weights_sha256": target.weights_sha256,
        "network": hashlib.sha256(built.encode()).hexdigest(),
        "layers": list(target.layout.names),
        "inputs": target.inputs.facts(),
    }
