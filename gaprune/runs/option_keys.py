"""Parsers of the keys that are no settings, from command-line text or TOML values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gaprune.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Key:
    """A key that is no setting."""

    name: str  # in a configuration file; on the command line with dashes
    parse: Callable[[Any, str], Any]  # from text or a TOML value, and the key's name
    description: str  # one line for people
    field: str | None = None  # of `InputOptions`, that it fills
    metavar: str = "TEXT"  # stands for its value in the help


def text(value: object, name: str) -> str:
    """Check that a value is text that is not empty."""
    if not isinstance(value, str) or not value:
        raise InputError(f"{name}: must be text that is not empty, got {value!r}")
    return value


def names(value: object, name: str) -> tuple[str, ...]:
    """Split text at commas, except inside the path of an existing file."""
    parts = value if isinstance(value, (list, tuple)) else [value]
    words: list[str] = []
    for part in parts:
        joined = text(part, name)
        # A comma may be in a path that stands alone, after a prefix, or before a function.
        paths = (joined, joined.partition(":")[2], joined.rpartition(":")[0])
        whole = any("," in path and _exists(path) for path in paths)
        words += [joined] if whole else [word.strip() for word in joined.split(",")]
    return tuple(text(word, name) for word in words)


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # too long for a path
        return False


def numbers(value: object, name: str) -> tuple[float, ...]:
    """Parse numbers; text holds them joined by commas."""
    parts = value.split(",") if isinstance(value, str) else value
    parts = parts if isinstance(parts, (list, tuple)) else [parts]
    try:  # as text: true and None are no numbers
        return tuple(float(str(part)) for part in parts)
    except ValueError:
        raise InputError(
            f"{name}: must be numbers joined by commas, such as 0.1 or 0.5,0.4,0.3; got {value!r}"
        ) from None


def sizes(value: object, name: str) -> tuple[int, ...]:
    """Parse whole numbers."""
    parsed = numbers(value, name)
    if not all(size.is_integer() for size in parsed):
        raise InputError(f"{name}: must be whole numbers, such as 1,28,28; got {value!r}")
    return tuple(int(size) for size in parsed)


def single_number(value: object, name: str) -> float:
    """Parse one number."""
    return _single(numbers, value, f"{name}: must be one number")


def count(value: object, name: str) -> int:
    """Parse one whole number."""
    return _single(sizes, value, f"{name}: must be one whole number")


def _single(parse: Callable[[object, str], tuple[T, ...]], value: object, rule: str) -> T:
    try:
        (parsed,) = parse(value, "")
    except ValueError:  # unreadable, or several
        raise InputError(f"{rule}, got {value!r}") from None
    return parsed


def yes_or_no(value: object, name: str) -> bool:
    """Parse a switch: true or false, yes or no."""
    words = {"yes": True, "true": True, "no": False, "false": False}
    if str(value).lower() not in words:
        raise InputError(f"{name}: must be yes or no, got {value!r}")
    return words[str(value).lower()]
