"""A lock on a folder: the system lets go of it when the process ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

NOBODY = "another process"  # who has the lock, where that is not written down


class Lock:
    """An exclusive lock on a file, which is made where it is missing.

    Args:
        path: the file; its content is the process that has the lock, and what it remarks.

    Raises:
        BlockingIOError: another process has it, or this one through another `Lock`.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = _locked(path)
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, str(os.getpid()).encode())

    def remark(self, text: str) -> None:
        """Write a remark for whoever looks at the lock."""
        os.write(self._descriptor, f" {text}".encode())

    def release(self, *, remove: bool = False) -> None:
        """Let go of it, and take the file away where that is asked for."""
        if self._descriptor < 0:
            return
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1


def in_use_by(path: Path) -> str | None:
    """Return in words which process has the lock of a file; None where nobody has."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        number = os.pread(descriptor, 20, 0).decode(errors="replace").partition(" ")[0].strip()
        return f"process {number}" if number.isdecimal() else NOBODY
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(descriptor)
    return None


def remark_in(path: Path) -> str:
    """Return what the owner of a lock remarks; empty where there is nothing, or no lock."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").partition(" ")[2]
    except OSError:
        return ""


def _locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise
        except OSError:  # a file system without locks: nothing can be promised there
            return descriptor
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # removed by its owner between the two calls: lock the new one
