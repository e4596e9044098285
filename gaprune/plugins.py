"""Parts that other packages add: Python's entry points, by group and name.

A plug-in is looked up when its name is asked for and imported then: what is only installed changes
nothing. Names of gaprune's own are found first, so no plug-in can take one.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Collection
from functools import lru_cache
from importlib import metadata
from typing import Any, NamedTuple, TypeVar

from gaprune.errors import InputError

T = TypeVar("T")

CRITERIA = "gaprune.criteria"
OBJECTIVES = "gaprune.objectives"
GENERATORS = "gaprune.generators."  # and the kind of input
MUTATIONS = "gaprune.mutations"
CROSSOVERS = "gaprune.crossovers"
PRESETS = "gaprune.presets"
EXPORTERS = "gaprune.exporters"
_ALL = "gaprune."


class Plugin(NamedTuple):
    """An entry point as it is installed; nothing of it has been imported.

    Attributes:
        group: what it adds to, such as `gaprune.criteria`.
        name: what the user calls it.
        place: `module:attribute`.
        package: that it comes from, with its version, or empty.
    """

    group: str
    name: str
    place: str
    package: str

    @property
    def title(self) -> str:
        """Its name and where it is from, in words."""
        return f"plug-in {self.name!r} ({self.package or 'no package'}: {self.place})"


def installed_plugins(group: str = "") -> list[Plugin]:
    """Return what is installed in a group, or in all groups of gaprune, in order of names.

    Of several of one name the first in the order of places counts, on every machine.
    """
    return list(_installed(group, tuple(sys.path)))


@lru_cache(
    maxsize=64
)  # every batch of calibration inputs asks; reading what is installed takes milliseconds
def _installed(group: str, _: tuple[str, ...]) -> tuple[Plugin, ...]:
    groups = [group] if group else sorted(metadata.entry_points().groups)
    found = [
        Plugin(one.group, one.name, one.value, _package(one))
        for known in groups
        if known.startswith(_ALL)
        for one in metadata.entry_points(group=known)
    ]
    first: dict[tuple[str, str], Plugin] = {}
    for one in sorted(found):
        first.setdefault((one.group, one.name), one)
    return tuple(first.values())


def plugin_names(group: str, own: Collection[str]) -> list[str]:
    """Return the names that plug-ins add to a list of gaprune's own, which they cannot take."""
    return [one.name for one in installed_plugins(group) if one.name not in own]


def find_plugin(group: str, name: str, read: Callable[[Plugin, Any], T]) -> T | None:
    """Return a plug-in by name, or None where there is none.

    Args:
        group: to look in.
        name: that the user gave, once it is no name of gaprune's own.
        read: makes of what the entry point holds what the group needs, or raises `InputError`.

    Raises:
        InputError: it is there, and its import or `read` fails: the user asked for it.
    """
    for one in installed_plugins(group):
        if one.name == name:
            return read(one, load_plugin(one))
    return None


def load_plugin(plugin: Plugin) -> Any:  # noqa: ANN401 - whatever an entry point holds
    """Import a plug-in and return what its entry point holds.

    Raises:
        InputError: importing it raises, or the attribute is not there.
    """
    point = metadata.EntryPoint(plugin.name, plugin.place, plugin.group)
    try:
        return point.load()
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{plugin.title}: importing it raised {type(error).__name__}: {error}; mend it, or "
            "uninstall it"
        ) from error


def load_plugins(
    group: str, own: Collection[str], read: Callable[[Plugin, Any], T]
) -> dict[str, T]:
    """Return all plug-ins of a group by name; one that is broken or shadows is left out.

    Warns:
        UserWarning: of each that is left out, and why.
    """
    found: dict[str, T] = {}
    for one in installed_plugins(group):
        try:
            check_name(one, own)
            found[one.name] = read(one, load_plugin(one))
        except InputError as error:
            warnings.warn(f"{error}; it is left out", stacklevel=2)
    return found


def check_name(plugin: Plugin, own: Collection[str]) -> None:
    """Raise where a plug-in has a name of gaprune's own.

    Raises:
        InputError: that name is taken.
    """
    if plugin.name in own:
        raise InputError(f"{plugin.title}: {plugin.name!r} is gaprune's own in {plugin.group}")


def require_type(kind: type[T]) -> Callable[[Plugin, object], T]:
    """Return a reader that accepts objects of type `kind` only."""

    def read(plugin: Plugin, value: object) -> T:
        if not isinstance(value, kind):
            name = f"{kind.__module__}.{kind.__name__}"
            raise InputError(f"{plugin.title}: must be a {name}, got {type(value).__name__}")
        return value

    return read


def require_function(plugin: Plugin, held: object) -> Callable[..., Any]:
    """Return what an entry point holds, which must be a function.

    Raises:
        InputError: it can't be called.
    """
    if not callable(held):
        raise InputError(f"{plugin.title}: must be a function, got {type(held).__name__}")
    return held


def _package(point: metadata.EntryPoint) -> str:
    # an entry point that was made by hand has no distribution
    return "" if point.dist is None else f"{point.dist.name} {point.dist.version}"
