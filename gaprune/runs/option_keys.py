"""What users write as text or TOML, key by key: one rule and one message for both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gaprune.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Key:
    """One key of a command that is no setting.

    Attributes:
        name: in a configuration file; on the command line with dashes.
        parse: from what a user writes (text, or a TOML value) and the key's name to its value.
        description: one line for people.
        field: the field of `InputOptions` that it fills, or None.
        metavar: stands for its value in the help.
    """

    name: str
    parse: Callable[[Any, str], Any]
    description: str
    field: str | None = None
    metavar: str = "TEXT"


def text(value: object, name: str) -> str:
    """Read text that is not empty."""
    if not isinstance(value, str) or not value:
        raise InputError(f"{name}: must be text that is not empty, got {value!r}")
    return value


def names(value: object, name: str) -> tuple[str, ...]:
    """Split at commas, but not inside the path of a file that exists."""
    parts = value if isinstance(value, (list, tuple)) else [value]
    found: list[str] = []
    for part in parts:
        whole = text(part, name)
        found += [whole] if _holds_path(whole) else [one.strip() for one in whole.split(",")]
    return tuple(text(one, name) for one in found)


def _holds_path(whole: str) -> bool:
    """Tell whether a comma is in a path: alone, behind a prefix, before a function."""
    forms = (whole, whole.partition(":")[2], whole.rpartition(":")[0])
    return any("," in form and _exists(form) for form in forms)


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # too long to be one
        return False


def numbers(value: object, name: str) -> tuple[float, ...]:
    """Read numbers, joined by commas where they come as text."""
    parts = value.split(",") if isinstance(value, str) else value
    parts = parts if isinstance(parts, (list, tuple)) else [parts]
    try:  # as text, so that true and None are no numbers
        return tuple(float(str(part)) for part in parts)
    except ValueError:
        raise InputError(
            f"{name}: must be numbers joined by commas, such as 0.1 or 0.5,0.4,0.3; got {value!r}"
        ) from None


def sizes(value: object, name: str) -> tuple[int, ...]:
    """Read whole numbers."""
    found = numbers(value, name)
    if not all(one.is_integer() for one in found):
        raise InputError(f"{name}: must be whole numbers, such as 1,28,28; got {value!r}")
    return tuple(int(one) for one in found)


def number(value: object, name: str) -> float:
    """Read one number."""
    return _one(numbers, value, f"{name}: must be one number")


def yes_or_no(value: object, name: str) -> bool:
    """Read a switch: true or false, yes or no."""
    known = {"yes": True, "true": True, "no": False, "false": False}
    if str(value).lower() not in known:
        raise InputError(f"{name}: must be yes or no, got {value!r}")
    return known[str(value).lower()]


def count(value: object, name: str) -> int:
    """Read one whole number."""
    return _one(sizes, value, f"{name}: must be one whole number")


def _one(read: Callable[[object, str], tuple[T, ...]], value: object, rule: str) -> T:
    try:
        (found,) = read(value, "")
    except ValueError:  # none that can be read, or not one of them
        raise InputError(f"{rule}, got {value!r}") from None
    return found
