"""What an export says about its files in `export.json`, and whether they still are those files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from gaprune.errors import InputError

FACTS = "export.json"
SCHEMA = 1


def read_facts(folder: Path) -> dict[str, Any] | None:
    """Return the content of `export.json`, or None where there is none."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and isinstance(facts.get("files"), dict) else None


def file_facts(path: Path) -> dict[str, Any]:
    """Return what is noted of one file."""
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def check_exported(path: Path) -> None:
    """Raise where the folder of a file says that the file was another one when it was exported.

    Formats of others do not notice a flipped bit. A file without `export.json` beside it passes.

    Raises:
        InputError: another file.
    """
    facts = read_facts(path.parent)
    noted = None if facts is None else facts["files"].get(path.name)
    if isinstance(noted, dict) and path.is_file() and noted.get("sha256") != _sha256(path):
        raise InputError(
            f"weights: {path} is damaged or was changed: it is not what {FACTS} beside it says was "
            "exported (SHA-256); export or fetch it again, or take it out of that folder"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
