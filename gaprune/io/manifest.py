"""Sizes and hashes of files, in `export.json`, `result.json` or `comparison.json` beside them.

These are sealed: they hold the SHA-256 of the rest of their own content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from gaprune.errors import InputError
from gaprune.io.bounded_reading import parse_as, read_json, reason
from gaprune.io.file_hash import sha256_of_file
from gaprune.io.serialization import to_json

MANIFEST, RECORD, IDENTITY = "export.json", "result.json", "comparison.json"
SCHEMA = 2  # of `export.json`
FILES, SEAL = "files", "sha256"
_LISTED = TypeAdapter(dict[str, dict[str, int | str]])
_OURS = {
    "schema",
    FILES,
    SEAL,
    "weights_sha256",
}


def sha256_of_data(content: object) -> str:
    """Return the SHA-256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain data with its own SHA-256, which `read_sealed` checks."""
    plain = json.loads(to_json(content))  # as it will be read: tuples become lists
    return {**plain, SEAL: _seal(plain)}


def check_sealed(content: object) -> dict[str, Any]:
    """Return data of `sealed`.

    Raises:
        ValueError: it was changed, or was never sealed.
    """
    if not isinstance(content, dict) or SEAL not in content:
        raise ValueError("it holds no SHA-256 of its content")
    if content[SEAL] != _seal(content):
        raise ValueError("its SHA-256 is not the one of its content")
    return content


def _seal(content: Mapping[str, Any]) -> str:
    return sha256_of_data({key: value for key, value in content.items() if key != SEAL})


def file_entries(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return name → size and SHA-256 of some files in a folder."""
    return {name: _entry(folder / name) for name in names}


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the content of `export.json`, or None if there is none of gaprune.

    Raises:
        InputError: it is damaged.
    """
    return _read_list(folder / MANIFEST)


def check_recorded(path: Path) -> None:
    """Raise if `export.json`, `result.json` or `comparison.json` lists another hash for a file.

    Formats of other tools do not notice a flipped bit. A file without such a list passes.

    Raises:
        InputError: the file, or the list, was changed after it was written.
    """
    for name in (MANIFEST, RECORD, IDENTITY):
        content = _read_list(path.parent / name)
        # a file that is not listed was put there by someone else
        entry = None if content is None else content.get(FILES, {}).get(path.name)
        if entry is not None and path.is_file() and entry != _entry(path):
            raise InputError(
                f"file: {path} is damaged or was changed: its SHA-256 is not the one in {name} "
                "beside it; make or fetch it again, or move it out of that folder"
            )


def _read_list(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = read_json(path)
        # other tools have files of these names, too, with at most one of the keys
        ours = isinstance(content, dict) and len(_OURS & content.keys()) >= 2
        if not ours and path.name != MANIFEST:
            return None
        content = check_sealed(content)
        parse_as(_LISTED, json.dumps(content.get(FILES, {})))
    except (OSError, ValueError) as error:
        raise InputError(
            f"file: {path} is damaged ({reason(error)}); make or fetch it again, or move other "
            "files out of that folder"
        ) from error
    return content


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
