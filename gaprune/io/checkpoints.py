"""Checkpoints: plain data and tensors in a folder, written and read as a whole.

::

    facts.json           plain data; floats are read back bit for bit
    tensors.safetensors  named tensors
    SHA256SUMS           of both, in the format of `sha256sum -c`
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from gaprune.errors import GapruneError
from gaprune.io.atomic import hidden_name, remove, remove_partial, replacing
from gaprune.io.bounded_reading import parse_json

FACTS, TENSORS, SUMS = "facts.json", "tensors.safetensors", "SHA256SUMS"
NUM_CHECKPOINTS = 2  # of one search; the older one is there in case the newer one is damaged


class DamagedError(GapruneError):
    """The files of a checkpoint are not those that were written."""


class Checkpoint(NamedTuple):
    """Plain data and CPU tensors that were saved together."""

    facts: dict[str, Any]
    tensors: dict[str, Tensor]


def write_checkpoint(path: Path, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint at `path`, in a folder that exists; OSError changes nothing."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = {FACTS: json.dumps(facts, ensure_ascii=False).encode(), TENSORS: save(stored)}
    content[SUMS] = _sums(content).encode()
    with replacing(path) as folder:
        folder.mkdir()
        for name, data in content.items():
            (folder / name).write_bytes(data)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; DamagedError if a bit of its files is not what was written."""
    try:
        content = {name: (path / name).read_bytes() for name in (FACTS, TENSORS)}
        # Checked first: a damaged file is never parsed.
        if _sums(content) != (path / SUMS).read_text(encoding="utf-8"):
            raise DamagedError(f"{path}: its files are not what was written (SHA-256)")
        return Checkpoint(parse_json(content[FACTS], bits=1 << 16), load(content[TENSORS]))
    except (OSError, ValueError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DamagedError(f"{path}: cannot be read ({reason})") from error


def _sums(content: Mapping[str, bytes]) -> str:
    lines = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in content.items())
    return "".join(lines)


def write_next(folder: Path, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Add a numbered checkpoint to a folder, which may be missing; then remove the oldest.

    If it cannot be written (OSError), the earlier ones stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_partial(folder)
    earlier = _numbered(folder)
    number = int(earlier[-1].name) + 1 if earlier else 1
    write_checkpoint(folder / f"{number:06d}", facts, tensors)
    for old in earlier[: 1 - NUM_CHECKPOINTS]:
        with contextlib.suppress(OSError):  # renamed first: a part of it is never read
            remove(old.rename(hidden_name(old)))


def read_newest(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """Read the newest undamaged checkpoint of `write_next`; None if none was ever written.

    `warn` is told of damaged ones, which are renamed and never read again.

    Raises:
        GapruneError: all of them are damaged.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(_numbered(folder)):
        try:
            checkpoint = read_checkpoint(path)
        except DamagedError as error:
            damaged[path] = str(error)
            continue
        for other, reason in damaged.items():
            warn(f"checkpoint: {reason}; the one before is used")
            with contextlib.suppress(OSError):
                other.rename(other.with_name(f"{other.name}.damaged"))
        return checkpoint
    if damaged:
        raise GapruneError(
            f"checkpoint: all {len(damaged)} are damaged ({'; '.join(damaged.values())}); "
            "start the run again"
        )
    return None


def _numbered(folder: Path) -> list[Path]:
    entries = folder.iterdir() if folder.is_dir() else ()
    paths = (path for path in entries if path.name.isdecimal() and path.is_dir())
    return sorted(paths, key=lambda path: int(path.name))
