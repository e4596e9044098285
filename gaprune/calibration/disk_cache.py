"""A disk cache of generated inputs: inverting a large network takes minutes.

A file holds one tensor under a key of everything that the tensor depends on. A damaged file is
computed again, and a folder that is not writable only costs time.
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
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from gaprune.io.atomic import write_file
from gaprune.io.serialization import from_metadata, to_metadata
from gaprune.io.tensor_files import open_tensors
from gaprune.io.weights import sha256_of

CACHE_VARIABLE = "GAPRUNE_CACHE"  # environment variable that names the folder
FORMAT = 2  # increase it when the same settings give other inputs
MAX_BYTES = 2 * 2**30  # of all files; the least recently used ones are deleted
SUBFOLDER = "calibration"  # a separate folder, so that no other file is ever deleted
SUFFIX = ".safetensors"
_INPUTS = "inputs"


def cache_folder() -> Path | None:
    """Return `$GAPRUNE_CACHE`, else `$XDG_CACHE_HOME/gaprune`, else `~/.cache/gaprune`.

    None if there is no home folder. The folder may not exist yet.
    """
    if stated := os.environ.get(CACHE_VARIABLE):
        return Path(stated)
    if general := os.environ.get("XDG_CACHE_HOME"):
        return Path(general) / "gaprune"
    try:
        return Path.home() / ".cache" / "gaprune"
    except RuntimeError:
        return None


def cache_key(weights_sha256: str, settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of everything that a tensor depends on.

    `settings` are options, input description, seed and count as plain data.
    """
    # The thread count decides the order of floating-point sums.
    facts = [FORMAT, torch.__version__, torch.get_num_threads(), weights_sha256, dict(settings)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def cached(
    key: str,
    make: Callable[[], Tensor],
    warn: Callable[[str], None],
    folder: Path | None = None,
) -> Tensor:
    """Return the tensor of a key (`cache_key`) from disk, or compute it on the CPU and store it.

    `warn` receives a sentence about a damaged file or an unusable folder. `folder` is the cache
    folder; None means `cache_folder()`.
    """
    folder = folder or cache_folder()
    if folder is None:
        warn(f"no home folder for the cache of generated inputs; set ${CACHE_VARIABLE}")
        return make()
    path = folder / SUBFOLDER / f"{key}{SUFFIX}"
    if (stored := _read(path, key, warn)) is not None:
        return stored
    inputs = make()
    try:
        _write(path, key, inputs)
        _delete_least_recent(path)
    except OSError as error:
        reason = error.strerror or error
        warn(f"cannot cache generated inputs in {folder} ({reason}); set ${CACHE_VARIABLE}")
    return inputs


def _read(path: Path, key: str, warn: Callable[[str], None]) -> Tensor | None:
    try:
        if not path.is_file():
            return None
        with open_tensors(path) as file:
            facts = from_metadata(file.metadata())
            inputs: Tensor = file.get_tensor(_INPUTS)
        if facts == {"key": key, "sha256": sha256_of({_INPUTS: inputs})}:
            with contextlib.suppress(OSError):  # the folder may be read-only
                os.utime(path)  # marks the file as recently used
            return inputs
        reason = "its hash does not match"
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        reason = str(error)
    warn(f"cached inputs {path} are ignored ({reason}) and computed again")
    return None


def _write(path: Path, key: str, inputs: Tensor) -> None:
    """Write under a temporary name and rename, so that readers never see half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {_INPUTS: inputs.contiguous()}
    write_file(path, save(stored, to_metadata(key=key, sha256=sha256_of(stored))))


def _delete_least_recent(newest: Path) -> None:
    files = [(p.stat(), p) for p in newest.parent.glob(f"*{SUFFIX}") if p != newest]
    remaining = MAX_BYTES - newest.stat().st_size
    for stat, path in sorted(files, key=lambda file: -file[0].st_mtime_ns):
        remaining -= stat.st_size
        if remaining < 0:
            path.unlink(missing_ok=True)
