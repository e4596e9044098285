"""`export.json` beside exported files: their sizes and hashes, and whether they still match."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from gaprune.errors import InputError

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
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def check_exported(path: Path) -> None:
    """Raise InputError if the `export.json` beside a file, where there is one, lists another hash.

    Formats of other tools do not notice a flipped bit.
    """
    manifest = read_manifest(path.parent)
    # a file that the manifest does not list was put there by someone else
    entry = None if manifest is None else manifest["files"].get(path.name)
    if isinstance(entry, dict) and path.is_file() and entry.get("sha256") != _sha256(path):
        raise InputError(
            f"weights: {path} is damaged or was changed: its SHA-256 is not the one in {MANIFEST} "
            "beside it; export or fetch it again, or move it out of that folder"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
