"""A run directory that this process has locked: checkpoints while it runs, the result at its end.

::

    checkpoint/lock       the process; the operating system releases it when the process ends
    checkpoint/start      settings, hash of the network, calibration inputs
    checkpoint/000007     the search after a generation; the last two are there
    checkpoint/0.95/…     with --max-drop: the same for every sparsity that is searched

The other files (see `gaprune.runs.directory`) are written at the end, `result.json` last, except
for `config.toml`, which is there from the first checkpoint on, and `history.jsonl`, which grows.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Self

from gaprune.errors import GapruneError, InputError
from gaprune.io import atomic
from gaprune.io.atomic import make_folders, remove_folders, writing
from gaprune.io.bounded_reading import parse_toml
from gaprune.io.lock import Lock, lock_owner
from gaprune.io.run_files import CHECKPOINT, CONFIG, LOCK, MAY_HOLD, RECORD, REPORT, read_config
from gaprune.io.trusted_code import remember_code
from gaprune.report import write_report
from gaprune.runs.directory import write_files
from gaprune.runs.job import PruneJob
from gaprune.runs.live_networks import remember_network
from gaprune.runs.result import Result


class OpenRun:
    """A run directory that belongs to this process inside the `with` block.

    If nothing was saved in it, the folder is removed at the end, and so are the parents made for
    it. An earlier run in it stays until the first checkpoint.

    Attributes:
        path: as the user wrote it; `folder` is the absolute path.
        keep_files: whether it holds a checkpoint to resume from, or a result.
        keep_on_error: whether that stays even if an input turns out to be wrong.

    Raises:
        InputError: another process has the folder locked, or it cannot be written.
    """

    def __init__(self, path: Path, made: Sequence[Path] = (), *, reopened: bool = False) -> None:
        self.path, self.folder, self._made = path, path.expanduser().resolve(), [*made]
        self.checkpoint = self.folder / CHECKPOINT
        self.keep_files = self.keep_on_error = self._begun = reopened
        try:
            with writing(path, InputError):
                self._made += make_folders(self.checkpoint)
                try:
                    self.lock = Lock(self.checkpoint / LOCK)
                except BlockingIOError:
                    raise _locked_error(path, self.checkpoint) from None
        except BaseException:
            remove_folders(self._made)
            raise

    @property
    def resumable(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return any(entry.is_dir() for entry in self.checkpoint.iterdir())

    @property
    def command(self) -> str:
        """The command that resumes this run."""
        return f"gaprune resume {shlex.quote(str(self.path))}"

    def begin(self, config: str) -> None:
        """Remove an earlier run, and write `config.toml`; OSError if it cannot be written."""
        self._begun = True
        self._remove_earlier()
        self.write_config(config)

    def write_config(self, config: str) -> None:
        """Write `config.toml`, and remember the code that it names; OSError if that fails."""
        atomic.write_file(self.folder / CONFIG, config)
        remember_code(self.folder, parse_toml(config))

    def save(self, result: Result, job: PruneJob | None = None) -> Path:
        """Write the files of a result, and return the absolute path of the folder.

        Raises:
            GapruneError: they cannot be written, and the folder is as it was; or the report cannot
                be made, and all other files are there.
        """
        remedy = f"; {self.command} saves it once there is space" if self.keep_files else ""
        fresh, report_error = atomic.hidden_name(self.folder / "result"), None
        with contextlib.ExitStack() as stack:
            stack.enter_context(writing(self.path, GapruneError, remedy))
            stack.callback(atomic.remove, fresh)
            fresh.mkdir()
            write_files(result, fresh, job)
            try:
                write_report(fresh, final=self.folder)
            except OSError:
                raise
            except Exception as error:  # noqa: BLE001 # a bug must not cost the result of a search
                report_error = error
            atomic.sync_tree(fresh)  # before any rename: a power cut must not leave empty files
            # A reader takes a folder without `result.json` for an unfinished run: removed first,
            # renamed last, it never stands beside files of another run.
            files = sorted(fresh.iterdir(), key=lambda file: file.name == RECORD)
            (self.folder / RECORD).unlink(missing_ok=True)
            self._remove_earlier(checkpoints=not self._begun, fresh=[file.name for file in files])
            for file in files:
                file.replace(self.folder / file.name)
            atomic.sync(self.folder)
            remember_code(self.folder, read_config(self.folder / CONFIG))
        self.keep_files = self.keep_on_error = self._begun = True
        if report_error is not None:
            raise GapruneError(
                f"report: {self.path} is saved, but {REPORT} could not be made ({report_error!r}); "
                "this is a bug in gaprune"
            ) from report_error
        return self.folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, InputError) and not self.keep_on_error:
            self.keep_files = False
        with contextlib.suppress(OSError):
            if self._begun and not self.keep_files:
                self._remove_earlier()
        with contextlib.suppress(OSError):
            atomic.remove_partial(self.folder)  # what a killed process left
            unused = [entry.name for entry in self.checkpoint.iterdir()] == [LOCK]
            # The file goes while it is locked: a process that waits for it then locks a new one.
            self.lock.release(remove=unused)
            if unused:
                self.checkpoint.rmdir()
        self.lock.release()
        if not self.keep_files:
            remove_folders(self._made)

    def _remove_earlier(self, *, checkpoints: bool = True, fresh: Iterable[str] = ()) -> None:
        """Remove the checkpoints of an earlier run, and its files that have no `fresh` ones."""
        for entry in self.checkpoint.iterdir() if checkpoints else ():
            if entry.is_dir():
                atomic.remove(entry)
        for name in MAY_HOLD - {CHECKPOINT, *fresh}:
            (self.folder / name).unlink(missing_ok=True)


def _locked_error(path: str | Path, checkpoint: Path) -> InputError:
    owner = lock_owner(checkpoint / LOCK) or "another process"
    return InputError(
        f"out: {owner} is writing to {path}; name another folder, or wait until it ends"
    )


def open_run(path: str | Path, *, overwrite: bool = False) -> OpenRun:
    """Open the directory of a new run: missing, empty, or with `overwrite` an earlier run's.

    Raises:
        InputError: a file, a folder with other content, a running run, or an earlier run.
    """
    path = Path(path)
    names, checkpoint = atomic.check_output_folder(path, MAY_HOLD), path.expanduser() / CHECKPOINT
    if lock_owner(checkpoint / LOCK) is not None:
        raise _locked_error(path, checkpoint)
    if names and not overwrite:
        unfinished = "" if RECORD in names else " that did not finish; gaprune resume continues it"
        raise InputError(
            f"out: {path} holds an earlier run{unfinished}; name another folder, or add --overwrite"
        )
    return OpenRun(path)


def free_name(stem: Path) -> Path:
    """Return the first of `stem`, `stem-2`, `stem-3`, … that does not exist."""
    names = (stem if n == 1 else stem.with_name(f"{stem.name}-{n}") for n in count(1))
    return next(name for name in names if not os.path.lexists(name))


def open_numbered_run(stem: Path) -> OpenRun:
    """Open the directory `free_name(stem)`; InputError if folders cannot be made there."""
    while True:
        path = free_name(stem)
        with writing(path, InputError):
            made = make_folders(path.resolve())
        if path.resolve() in made:
            return OpenRun(path, made)
        remove_folders(made)  # another run has just taken the name


def reopen_run(path: str | Path) -> OpenRun:
    """Open the directory of a run to resume it; InputError if that is not possible."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise InputError(f"run: there is no folder {path}; name the folder of a run")
    if not (folder / CHECKPOINT).is_dir():
        raise InputError(
            f"run: {path} has no checkpoint (nor have one-shot methods, or --checkpoint-every=0); "
            "start it again with gaprune prune"
        )
    return OpenRun(Path(path), reopened=True)


def save_run(
    result: Result, path: str | Path, *, overwrite: bool = False, job: PruneJob | None = None
) -> Path:
    """Write a run directory and return its absolute path; if that fails, the folder is as it was.

    Args:
        result: what `gaprune.prune` returned.
        path: the run directory: new, empty, or with an earlier run.
        overwrite: whether an earlier run there is replaced.
        job: what was asked for on the command line; `config.toml` then repeats it.

    Raises:
        InputError: the folder cannot be used.
        GapruneError: writing failed, for example on a full disk.
    """
    with open_run(path, overwrite=overwrite) as run_directory:
        remember_network(path, result.target.model)
        return run_directory.save(result, job)
