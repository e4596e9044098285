"""What can go wrong, as types: the command line turns each into its exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_SHOWN = 5  # names listed of a long list


class GapruneError(Exception):
    """A run failed for a reason that the message explains (exit code 1)."""


class InputError(GapruneError, ValueError):
    """The input breaks a rule; the message names it, what came and the way out (exit code 2)."""


def nearest(name: str, known: Sequence[str], of: str) -> str:
    """Return the names of a long list that come nearest, in words; `of` says what list it is."""
    if not known:
        return f"there are no names {of}"
    near = difflib.get_close_matches(name, known, n=_SHOWN, cutoff=0.5)
    return f"nearest of the {len(known)} names {of}: {', '.join(near or known[:_SHOWN])}"


def unknown_name(what: str, name: object, valid: Iterable[str]) -> InputError:
    """Return the error for a name outside a closed list: the nearest name, then all of them."""
    names = sorted(valid)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return InputError(f"{what}: unknown name {name!r}{hint}; valid names: {', '.join(names)}")
