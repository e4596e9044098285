"""A lock on a folder that the operating system releases when the process ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

NO_CHECKPOINTS = "writes no checkpoints"  # note in the lock file of such a run


class Lock:
    """An exclusive lock on a file; its content is the number of the process, and a note.

    Args:
        path: the file; it is made if it is missing.

    Raises:
        BlockingIOError: another process has the lock, or this one through another `Lock`.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = _open_locked(path)
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, str(os.getpid()).encode())

    def add_note(self, note: str) -> None:
        """Write a note for other processes into the file."""
        os.write(self._descriptor, f" {note}".encode())

    def release(self, *, remove: bool = False) -> None:
        """Release the lock; with `remove` delete its file first."""
        if self._descriptor < 0:
            return
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1


def lock_owner(path: Path) -> str | None:
    """Return `process NUMBER` for the process that has the lock; None if no process has it."""
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                number = file.read(20).decode(errors="replace").partition(" ")[0]
                return f"process {number}" if number.isdecimal() else "another process"
    except OSError:  # no such file, or a file system without locks
        pass
    return None


def _open_locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise
        except OSError:  # a file system without locks guarantees nothing
            return descriptor
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # its owner has removed it between the two calls: lock the new file
