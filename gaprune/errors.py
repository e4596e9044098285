"""The exception types; the command line maps each to an exit code."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

_MOST_NAMES = 5  # listed of a long list
_ARGUMENT = re.compile(r"^(?!labels)[a-z_ ]+: ")  # the first word of every message


class GapruneError(Exception):
    """A run failed, for a reason that the message explains (exit code 1)."""


class InputError(GapruneError, ValueError):
    """An input is invalid; the message names rule, value and remedy (exit code 2)."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def about(argument: str, error: Exception) -> InputError:
    """Return the error of another argument as one of `argument`; the message is not nested."""
    return InputError(f"{argument}: {_ARGUMENT.sub('', str(error))}")


def nearest(name: str, known: Sequence[str], of: str) -> str:
    """Return a text with the nearest names of a long list; `of` says which list it is."""
    if not known:
        return f"there are no names {of}"
    near = difflib.get_close_matches(name, known, n=_MOST_NAMES, cutoff=0.5)
    return f"nearest of the {len(known)} names {of}: {', '.join(near or known[:_MOST_NAMES])}"


def unknown_name(what: str, name: object, valid: Iterable[str]) -> InputError:
    """Return the error for a name outside a closed list: the nearest name, then all of them."""
    names = sorted(valid)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return InputError(f"{what}: unknown name {name!r}{hint}; valid names: {', '.join(names)}")
