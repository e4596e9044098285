"""Plain data and tensors as a folder that is there as a whole or not at all.

::

    facts.json           plain data; floats come back bit for bit
    tensors.safetensors  named tensors
    SHA256SUMS           of both, as `sha256sum -c` reads them

The files are written and synced under a temporary name, and the folder then takes its own: at
whatever moment the process or the machine dies, a reader finds all of a bundle or none of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from gaprune.errors import GapruneError

FACTS, TENSORS, SUMS = "facts.json", "tensors.safetensors", "SHA256SUMS"
PARTIAL = ".partial"  # how names end that nobody reads


class DamagedError(GapruneError):
    """A bundle is not what was written."""


class Checkpoint(NamedTuple):
    """What was kept together.

    Attributes:
        facts: plain data.
        tensors: on the CPU.
    """

    facts: dict[str, Any]
    tensors: dict[str, Tensor]


def write_checkpoint(place: Path, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a bundle at `place`, whose folder exists; what is there already is not replaced.

    Raises:
        OSError: there is no space, no right to write, or already a bundle; nothing is changed then.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = {
        FACTS: json.dumps(facts, ensure_ascii=False).encode(),
        TENSORS: save(stored),
    }
    sums = _sums(content)
    partial = hidden_name(place)
    try:
        partial.mkdir()
        for name, data in {**content, SUMS: sums.encode()}.items():
            _write(partial / name, data)
        sync(partial)
        partial.rename(place)  # refused where something lies already
        sync(place.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_checkpoint(place: Path) -> Checkpoint:
    """Read a bundle whose files are, bit for bit, those that were written.

    Raises:
        DamagedError: they are not; the message says which.
    """
    try:
        content = {name: (place / name).read_bytes() for name in (FACTS, TENSORS)}
        if _sums(content) != (place / SUMS).read_text(encoding="utf-8"):
            raise DamagedError(f"{place}: its files are not what was written (SHA-256)")
        return Checkpoint(json.loads(content[FACTS]), load(content[TENSORS]))
    except (OSError, ValueError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DamagedError(f"{place}: cannot be read ({reason})") from error


def remove_checkpoint(place: Path) -> None:
    """Take a bundle away, so that no part of it is ever taken for one."""
    partial = hidden_name(place)
    place.rename(partial)
    shutil.rmtree(partial, ignore_errors=True)


def remove_rests(folder: Path) -> None:
    """Take away what a process left that died while it wrote."""
    for rest in folder.glob(f".*{PARTIAL}"):
        if rest.is_dir():
            shutil.rmtree(rest, ignore_errors=True)
        else:
            rest.unlink(missing_ok=True)


def hidden_name(place: Path) -> Path:
    """Return a new name beside `place` that nobody reads."""
    return place.with_name(f".{place.name}.{secrets.token_hex(4)}{PARTIAL}")


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sums(content: Mapping[str, bytes]) -> str:
    lines = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in content.items())
    return "".join(lines)
