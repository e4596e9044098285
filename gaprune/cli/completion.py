"""Values that a shell completes: names from closed lists; where none fits, shells offer files."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def among(names: Iterable[str], *, joined: bool = False) -> Callable[[str], list[str]]:
    """Return what completes one option.

    Args:
        names: that it takes.
        joined: whether it takes several in one word, joined by commas.

    Examples:
        >>> among(("lamp", "magnitude", "wanda"), joined=True)("lamp,")
        ['lamp,magnitude', 'lamp,wanda']
    """
    known = list(names)

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",") if joined else ("", "", incomplete)
        taken = before.split(",")
        return [
            f"{before}{comma}{name}"
            for name in known
            if name.startswith(last) and name not in taken
        ]

    return complete
