"""`--set KEY=VALUE`: any key of a run's config.toml, on the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from gaprune.errors import InputError


def read_pairs(pairs: Iterable[str], stated: Mapping[str, object]) -> dict[str, Any]:
    """Return what `KEY=VALUE` pairs say; values as in TOML, where quotes may be left out.

    Args:
        pairs: as they were typed; `-` in a key is `_`.
        stated: what options of their own say.

    Raises:
        InputError: no `=`, an empty key, or a key that is stated twice.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        typed, equals, value = pair.partition("=")
        key = typed.strip().replace("-", "_")
        if not equals or not key:
            raise InputError(f"set: must be KEY=VALUE, got {pair!r}; such as --set steps=50")
        if key in found or key in stated:
            raise InputError(f"set: {key!r} is stated twice; leave one out")
        found[key] = _value(value.strip())
    return found


def _value(text: str) -> Any:  # noqa: ANN401 - what TOML can hold
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
