"""`export.json` beside exported files: their sizes and hashes, and whether they still match."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gaprune.errors import InputError
from gaprune.io.file_hash import sha256_of_file

MANIFEST = "export.json"
SCHEMA = 2


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the content of `export.json`, or None if there is none."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("files"), dict) else None


def manifest_entry(path: Path) -> dict[str, Any]:
    """Return size and SHA-256 of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}


def check_exported(path: Path) -> None:
    """Raise InputError if the `export.json` beside a file, where there is one, lists another hash.

    Formats of other tools do not notice a flipped bit.
    """
    manifest = read_manifest(path.parent)
    # a file that the manifest does not list was put there by someone else
    if manifest is None or path.name not in manifest["files"] or not path.is_file():
        return
    entry = manifest["files"][path.name]
    if not isinstance(entry, dict) or entry.get("sha256") != sha256_of_file(path):
        raise InputError(
            f"weights: {path} is damaged or was changed: its SHA-256 is not the one in {MANIFEST} "
            "beside it; export or fetch it again, or move it out of that folder"
        )
