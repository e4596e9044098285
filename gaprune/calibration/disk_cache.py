"""Made inputs kept on disk: inverting a large network takes minutes and always gives the same.

A file holds one batch under a key of everything that it depends on. What is found damaged is made
anew, and a place that cannot be written only costs the time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gaprune.io.atomic import write_file
from gaprune.io.serialization import from_stamp, to_stamp
from gaprune.io.weights import sha256_of

PLACE = "GAPRUNE_CACHE"  # the environment variable that names the folder
FORMAT = 1  # raise it when the same settings come to give other inputs
LIMIT = 2 * 2**30  # bytes; the files that were not used for longest make room
SHELF = "calibration"  # a folder of its own: nothing else is ever removed
SUFFIX = ".safetensors"
_INPUTS = "inputs"


def cache_folder() -> Path | None:
    """Return `$GAPRUNE_CACHE`, else `$XDG_CACHE_HOME/gaprune`, else `~/.cache/gaprune`.

    None where there is no home either. The folder may not exist yet.
    """
    if stated := os.environ.get(PLACE):
        return Path(stated)
    if general := os.environ.get("XDG_CACHE_HOME"):
        return Path(general) / "gaprune"
    try:
        return Path.home() / ".cache" / "gaprune"
    except RuntimeError:
        return None


def cache_key(weights_sha256: str, settings: Mapping[str, Any]) -> str:
    """Return the hash of what a batch depends on, 64 hexadecimal digits.

    Args:
        weights_sha256: of the network's state (`Target.weights_sha256`).
        settings: everything else, as plain data: recipe, input description, seed, count.

    Raises:
        TypeError: a setting that is not plain data.
    """
    facts = [FORMAT, torch.__version__, torch.get_num_threads(), weights_sha256, dict(settings)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def cached(
    key: str,
    make: Callable[[], Tensor],
    warn: Callable[[str], None],
    folder: Path | None = None,
) -> Tensor:
    """Return the batch of a key from disk, or make it and keep it there.

    Args:
        key: see `cache_key`.
        make: makes the batch, any shape and dtype, on the CPU.
        warn: told in a sentence of a damaged file, or of a folder that cannot be used.
        folder: where files lie; None means `cache_folder()`.
    """
    folder = folder or cache_folder()
    if folder is None:
        warn("there is no home folder to keep made inputs in; name one with $" + PLACE)
        return make()
    path = folder / SHELF / f"{key}{SUFFIX}"
    found = _read(path, key, warn)
    if found is not None:
        return found
    made = make()
    try:
        _write(path, key, made)
        _make_room(path)
    except OSError as error:
        reason = error.strerror or error
        warn(f"made inputs cannot be kept in {folder} ({reason}); name a folder with ${PLACE}")
    return made


def _read(path: Path, key: str, warn: Callable[[str], None]) -> Tensor | None:
    try:
        if not path.is_file():
            return None
        with safe_open(path, "pt") as file:
            facts = from_stamp(file.metadata())
            inputs: Tensor = file.get_tensor(_INPUTS)
        if facts == {"key": key, "sha256": sha256_of({_INPUTS: inputs})}:
            with contextlib.suppress(OSError):  # a folder that is only read from
                os.utime(path)  # used: not the next to make room
            return inputs
        reason = "its content is not what was written"
    except (OSError, SafetensorError, ValueError) as error:
        reason = str(error)
    warn(f"the kept inputs {path} are not used ({reason}); they are made anew")
    return None


def _write(path: Path, key: str, inputs: Tensor) -> None:
    """Write a file that takes its name once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {_INPUTS: inputs.contiguous()}
    write_file(path, save(stored, to_stamp(key=key, sha256=sha256_of(stored))))


def _make_room(newest: Path) -> None:
    files = [(p.stat(), p) for p in newest.parent.glob(f"*{SUFFIX}") if p != newest]
    room = LIMIT - newest.stat().st_size
    for stat, path in sorted(files, key=lambda file: -file[0].st_mtime_ns):
        room -= stat.st_size
        if room < 0:
            path.unlink(missing_ok=True)
