"""Plain data as text: TOML for people, strict JSON for programs, metadata of safetensors files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from gaprune.io.bounded_reading import parse_json

METADATA_KEY = "about"


def to_toml(values: Mapping[str, Any]) -> str:
    """Write text, numbers, booleans and lists of them as TOML, one key per line.

    Raises:
        TypeError: a value of any other type.
    """
    return "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())


def to_json(record: Any, indent: int | None = None) -> str:  # noqa: ANN401 - any plain data
    """Return strict JSON: NaN and infinity become null."""
    return json.dumps(_finite(record), indent=indent, ensure_ascii=False, allow_nan=False)


def to_metadata(**facts: str) -> dict[str, str]:
    """Return metadata for a safetensors file: all facts as JSON under one key.

    safetensors writes several keys in random order; one key keeps equal files equal byte by byte.
    """
    return {METADATA_KEY: json.dumps(facts, ensure_ascii=False)}


def from_metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Return the facts that `to_metadata` wrote.

    Raises:
        ValueError, TypeError: the metadata is damaged.
    """
    return dict(parse_json((metadata or {}).get(METADATA_KEY, "{}")))


def _toml(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    # before numbers: bool is a subclass of int
    if isinstance(value, (bool, str)):  # JSON escapes everything that TOML requires, except DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (int, float)):
        return repr(value)
    raise TypeError(f"no TOML for {type(value).__name__}: {value!r}")


def _finite(value: Any) -> Any:  # noqa: ANN401 - any plain data
    if isinstance(value, float):
        return value if math.isfinite(value) else None  # "NaN" is no JSON
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value
