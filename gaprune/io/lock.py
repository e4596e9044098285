"""A lock on a folder that the operating system releases when the process ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

NO_CHECKPOINTS = "writes no checkpoints"  # note in the lock file of such a run


class Lock:
    """An exclusive lock on a file; its content is the number of the process, and a note.

    Raises:
        BlockingIOError: another process has the lock, or this one through another `Lock`.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        while True:
            self._file = path.open("ab", buffering=0)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(self._file.fileno()), path.stat()):
                    break
            except BlockingIOError:
                self._file.close()
                raise
            except FileNotFoundError:
                pass
            except OSError:  # a file system without locks guarantees nothing
                break
            self._file.close()  # its owner has removed it between two calls: lock the new file
        self._file.truncate(0)
        self.add_note(str(os.getpid()))

    def add_note(self, note: str) -> None:
        """Append a note for other processes to the file."""
        self._file.write(f"{note} ".encode())

    def release(self, *, remove: bool = False) -> None:
        """Release the lock, if it is not yet; with `remove` delete its file first."""
        if remove and not self._file.closed:
            self.path.unlink(missing_ok=True)
        self._file.close()


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


def writes_no_checkpoints(path: Path) -> bool:
    """Tell whether a lock file has the note `NO_CHECKPOINTS`."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        return NO_CHECKPOINTS.encode() in file.read(200)
    return False
