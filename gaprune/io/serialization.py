"""Plain data as text that every reader takes: TOML to be edited, strict JSON to be parsed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STAMP = "about"  # the metadata key of our safetensors files


def to_toml(values: Mapping[str, Any]) -> str:
    """Write text, numbers, booleans and lists of them as TOML, one key per line.

    Raises:
        TypeError: a value of any other type.
    """
    return "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())


def to_json(record: Any, indent: int | None = None) -> str:  # noqa: ANN401 - any plain data
    """Return strict JSON: what is not a finite number becomes null."""
    return json.dumps(_finite(record), indent=indent, ensure_ascii=False, allow_nan=False)


def to_stamp(**facts: str) -> dict[str, str]:
    """Return metadata for a safetensors file: all facts as JSON under one key.

    The header holds several keys in random order, so only one keeps equal files equal by byte.
    """
    return {STAMP: json.dumps(facts, ensure_ascii=False)}


def from_stamp(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Return the facts that `to_stamp` wrote."""
    return dict(json.loads((metadata or {}).get(STAMP, "{}")))


def text_or_nothing(path: Path) -> str:
    """Return what a file holds, and nothing where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def object_or_nothing(text: str) -> dict[str, Any]:
    """Return the object that JSON holds, and an empty one where it holds none."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _toml(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, (bool, str)):  # JSON escapes what TOML wants escaped, all but DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (int, float)):
        return repr(value)
    raise TypeError(f"no TOML for {type(value).__name__}: {value!r}")


def _finite(value: Any) -> Any:  # noqa: ANN401 - any plain data
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value
