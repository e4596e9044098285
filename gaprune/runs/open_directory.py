"""A run directory that one process has claimed: locked, kept in while it runs, filled at the end.

::

    config.toml           from the moment something is kept
    history.jsonl         while a search goes on: line by line, for `gaprune watch`
    checkpoint/lock       who is at work; the system lets go of it when the process ends
    checkpoint/start      the settings, the network's hash, the calibration inputs
    checkpoint/000007     the search after a generation; the last two are there
    checkpoint/0.95/…     with --max-drop: the same for every sparsity that is searched

The other files (see `gaprune.runs.directory`) come when the search ends, `result.json` last.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from gaprune.errors import GapruneError, InputError
from gaprune.io.atomic_folder import hidden_name, sync
from gaprune.io.lock import Lock, in_use_by
from gaprune.io.run_files import (
    CHECKPOINT,
    CONFIG,
    LOCK,
    MAY_HOLD,
    RECORD,
    REPORT,
    UNWATCHED,
    writing,
)
from gaprune.report import write_report
from gaprune.runs.directory import busy, check_free, free_name, write_files
from gaprune.runs.job import PruneJob
from gaprune.runs.result import Result


class OpenRun:
    """A run directory that belongs to this process inside the `with` block.

    A folder in which nothing is kept is gone afterwards, with the parents made for it. An earlier
    run in it stays until there is something to keep.

    Attributes:
        path: as the user named it.
        folder: the absolute path.
        keep_files: whether there is something to go on with, or a result.
        keep_on_error: whether that stays even if the input turns out to be wrong.

    Raises:
        InputError: another process is at work there, or the place cannot be written.
    """

    def __init__(self, path: Path, made: list[Path], *, again: bool = False) -> None:
        self.path, self.folder, self._made = path, path.expanduser().resolve(), made
        self.keep_files = self.keep_on_error = again
        self._begun = again
        try:
            with writing(path, InputError):
                if not self.checkpoint.exists():
                    self.checkpoint.mkdir()
                    made.append(self.checkpoint)
                self._lock = self._take()
        except BaseException:
            _remove(made)
            raise

    @property
    def checkpoint(self) -> Path:
        """The folder of what is kept."""
        return self.folder / CHECKPOINT

    @property
    def resumable(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return any(entry.is_dir() for entry in self.checkpoint.iterdir())

    @property
    def command(self) -> str:
        """What to type to go on with this run."""
        return f"gaprune resume {shlex.quote(str(self.path))}"

    def mark_unwatched(self) -> None:
        """Tell who watches that nothing will be here before the result is."""
        self._lock.remark(UNWATCHED)

    def begin(self, config: str) -> None:
        """Make room for what is about to be kept: an earlier run goes.

        Args:
            config: the content of `config.toml`.

        Raises:
            OSError: it cannot be written.
        """
        self._begun = True
        self._clear()
        self.write_config(config)

    def write_config(self, config: str) -> None:
        """Write `config.toml`; one that is there is whole until the new one is.

        Raises:
            OSError: it cannot be written.
        """
        fresh = hidden_name(self.checkpoint / CONFIG)
        try:
            fresh.write_text(config, encoding="utf-8")
            sync(fresh)
            fresh.replace(self.folder / CONFIG)
            sync(self.folder)
        finally:
            fresh.unlink(missing_ok=True)

    def save(self, result: Result, job: PruneJob | None = None) -> Path:
        """Write the result's files, once all of them are on the disk under other names.

        Returns:
            The absolute path of the folder.

        Raises:
            GapruneError: they cannot be written, and what was there is as it was; or the report
                cannot be made, and all the others are there.
        """
        remedy = f"; {self.command} saves it once there is some" if self.keep_files else ""
        fresh = hidden_name(self.checkpoint / "result")
        with contextlib.ExitStack() as stack:
            stack.enter_context(writing(self.path, GapruneError, remedy))
            stack.callback(shutil.rmtree, fresh, ignore_errors=True)
            fresh.mkdir()
            write_files(result, fresh, job)
            failure = _draw(fresh, self.folder.name)
            new = sorted(fresh.iterdir(), key=lambda file: file.name == RECORD)
            (self.folder / RECORD).unlink(missing_ok=True)  # it comes last: the others are its own
            if not self._begun:
                self._drop_checkpoints(but=fresh)
            for name in MAY_HOLD - {CHECKPOINT} - {file.name for file in new}:
                (self.folder / name).unlink(missing_ok=True)
            for file in new:
                file.replace(self.folder / file.name)
            sync(self.folder)
        self.keep_files = self.keep_on_error = self._begun = True
        if failure is not None:
            raise GapruneError(
                f"report: {self.path} is saved, but no {REPORT} could be made of it ({failure!r}); "
                "this is a defect of gaprune"
            ) from failure
        return self.folder

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        wrong = kind is not None and issubclass(kind, InputError)
        if wrong and not self.keep_on_error:
            self.keep_files = False
        if self._begun and not self.keep_files:
            with contextlib.suppress(OSError):
                self._clear()
        with contextlib.suppress(OSError):
            alone = [entry.name for entry in self.checkpoint.iterdir()] == [LOCK]
            self._lock.release(remove=alone)
            if alone:
                self.checkpoint.rmdir()
        self._lock.release()
        if not self.keep_files:
            _remove(self._made)

    def _take(self) -> Lock:
        path = self.checkpoint / LOCK
        try:
            return Lock(path)
        except BlockingIOError:
            raise busy(self.path, in_use_by(path)) from None

    def _clear(self) -> None:
        for entry in self.folder.iterdir():
            if entry.name in MAY_HOLD - {CHECKPOINT}:
                entry.unlink()
        self._drop_checkpoints()

    def _drop_checkpoints(self, but: Path | None = None) -> None:
        for entry in self.checkpoint.iterdir():
            if entry.is_dir() and entry != but:
                shutil.rmtree(entry)


def _draw(folder: Path, name: str) -> Exception | None:
    """Make the report of the files in a folder; hours of a search are not lost for a picture."""
    try:
        write_report(folder, name=name)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - handed on, once everything else is saved
        return error
    sync(folder / REPORT)
    return None


def open_run(path: str | Path, *, overwrite: bool = False) -> OpenRun:
    """Claim the folder of a new run.

    Args:
        path: see `run_directory.check_free`.
        overwrite: whether an earlier run there may be replaced.

    Raises:
        InputError: the place cannot be used.
    """
    check_free(path, overwrite=overwrite)
    return OpenRun(Path(path), _make(Path(path), alone=False) or [])


def open_numbered_run(stem: Path) -> OpenRun:
    """Claim the first of `stem`, `stem-2`, `stem-3`, … that does not exist.

    Raises:
        InputError: folders cannot be made there.
    """
    made: list[Path] | None = None
    while made is None:
        path = free_name(stem)
        made = _make(path, alone=True)  # or another run has just taken the name
    return OpenRun(path, made)


def reopen_run(path: str | Path) -> OpenRun:
    """Claim the folder of a run to go on with it.

    Raises:
        InputError: there is none, it keeps nothing, or another process is at work there.
    """
    place = Path(path).expanduser()
    if not place.is_dir():
        raise InputError(f"run: there is no folder {path}; name the folder of a run")
    if not (place / CHECKPOINT).is_dir():
        raise InputError(
            f"run: {path} keeps nothing to go on with (one-shot methods and --checkpoint-every 0 "
            "keep nothing); start it again with gaprune prune"
        )
    return OpenRun(Path(path), [], again=True)


def save_run(
    result: Result, path: str | Path, *, overwrite: bool = False, job: PruneJob | None = None
) -> Path:
    """Write a run folder; an interrupted or failing save leaves what was there before.

    Args:
        result: what `gaprune.prune` returned.
        path: the run folder, see `run_directory.check_free`.
        overwrite: whether an earlier run there is replaced.
        job: see `run_directory.write_files`.

    Returns:
        The absolute path of the folder.

    Raises:
        InputError: the place cannot be used.
        GapruneError: writing failed, for example on a full disk.
    """
    with open_run(path, overwrite=overwrite) as run_directory:
        return run_directory.save(result, job)


def _make(path: Path, *, alone: bool) -> list[Path] | None:
    """Make a folder and its missing parents; return those that were made, outermost first.

    None where the folder has to be made here, and was made by somebody else.
    """
    made: list[Path] = []
    place = path.expanduser().resolve()
    with writing(path, InputError):
        try:
            for folder in [one for one in (*reversed(place.parents), place) if not one.exists()]:
                try:
                    folder.mkdir()
                    made.append(folder)
                except FileExistsError:  # a moment ago
                    if not folder.is_dir():
                        raise
        except BaseException:
            _remove(made)
            raise
    if alone and place not in made:
        _remove(made)
        return None
    return made


def _remove(folders: list[Path]) -> None:
    for folder in reversed(folders):
        with contextlib.suppress(OSError):  # gone, or somebody else has put something there
            folder.rmdir()
