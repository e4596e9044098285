"""Write files and folders so that a reader finds all of them or nothing, and check output folders.

Everything is written under a hidden name, synced to the disk and then renamed. Whenever the process
or the machine stops, the real name stands for the old content or for the new one, never for a part.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Container, Iterator
from pathlib import Path

from safetensors import SafetensorError

from gaprune.errors import GapruneError, InputError

PARTIAL = ".partial"  # suffix of hidden names


def hidden_name(path: Path) -> Path:
    """Return a new hidden name beside `path`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")


def sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Wait until a folder with everything in it is on the disk."""
    # safetensors writes files that only their owner can read: grant what the umask allows, which
    # mkdir has applied to the folder.
    mode = folder.stat().st_mode & 0o666
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file():
            path.chmod(mode)
        sync(path)
    sync(folder)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a hidden name; the file or folder written there becomes `path`.

    What was at `path` stays if the block raises, or if writing raises OSError.
    """
    fresh, old = hidden_name(path), hidden_name(path)
    try:
        yield fresh
        if fresh.is_dir():
            sync_tree(fresh)
            if path.exists():  # a folder cannot be renamed onto another one
                path.rename(old)
        else:
            sync(fresh)
        fresh.replace(path)
        sync(path.parent)
        remove(old)
    except BaseException:  # also of an interrupt on the last line above
        if old.exists() and not path.exists():
            old.rename(path)
        remove(fresh)
        remove(old)
        raise


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file in place of an older one, which stays if that raises OSError."""
    with replacing(path) as fresh:
        fresh.write_bytes(content.encode() if isinstance(content, str) else content)


def remove(path: Path) -> None:
    """Remove a file or folder, if it exists and can be removed."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def remove_partial(folder: Path, name: str = "*") -> None:
    """Remove what killed processes left half-written: of one name in a folder, or of all."""
    for path in folder.glob(f".{name}.*{PARTIAL}"):
        remove(path)


def make_folders(path: Path) -> list[Path]:
    """Make a folder and its parents, all or (OSError) none; return those made, outermost first."""
    made: list[Path] = []
    try:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):  # another process has just made it
                folder.mkdir()
                made.append(folder)
        os.scandir(path).close()  # raises if a file of this name exists
    except BaseException:
        remove_folders(made)
        raise
    return made


def remove_folders(folders: list[Path]) -> None:
    """Remove folders that `make_folders` made, as far as they are empty."""
    for folder in reversed(folders):
        with contextlib.suppress(OSError):  # another process has put something there
            folder.rmdir()


@contextlib.contextmanager
def writing(path: str | Path, error_type: type[GapruneError], remedy: str = "") -> Iterator[None]:
    """Turn an error of the operating system into one message that names `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise error_type(
            f"out: cannot write to {path} ({reason}); "
            f"name a folder that you may write to, with space left{remedy}"
        ) from error


def check_output_folder(
    path: str | Path, allowed: Container[str], *, recursive: bool = False
) -> list[str]:
    """Check that a folder, which may be missing, is free for output; return the names in it.

    Files with `allowed` names may be replaced. With `recursive` names are relative paths of files.

    Raises:
        InputError: `path` is a file, cannot be read, or holds other files.
    """
    with writing(path, InputError):
        folder = Path(path).expanduser().resolve()  # the target of a link is what is replaced
        if not folder.exists():
            return []
        if not folder.is_dir():
            raise InputError(f"out: {path} is a file; name a folder that is new or empty")
        files = (entry for entry in folder.rglob("*") if not entry.is_dir())
        entries = files if recursive else folder.iterdir()
        names = sorted(str(entry.relative_to(folder)) for entry in entries)
    names = [name for name in names if not name.endswith(PARTIAL)]  # of processes that were killed
    if others := [name for name in names if name not in allowed]:
        listed = ", ".join(others[:3]) + (", …" if others[3:] else "")
        raise InputError(
            f"out: {path} holds other files ({listed}); name a folder that is new or empty"
        )
    return names
