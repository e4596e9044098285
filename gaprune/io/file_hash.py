"""Files by what they hold, so that a row of an edited file is not taken for one of the file now."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path


@cache  # code is imported once in a process, so it counts as it was then
def content_of(path: str) -> str:
    """Return the SHA-256 (hex) of a file; of a folder, that of its files' names and sizes."""
    file = Path(path).expanduser()
    if file.is_dir():  # its files may be many gigabytes
        sizes = sorted((str(p.relative_to(file)), p.stat().st_size) for p in file.rglob("*"))
        return hashlib.sha256(repr(sizes).encode()).hexdigest()
    return sha256_of_file(file)


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 (hex) of a file, which is read in pieces; OSError if it cannot be."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
