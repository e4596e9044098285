"""Plug-ins: extensions in other packages, declared as Python entry points by group and name.

A plug-in is looked up and imported when its name is requested: a package that is only installed
changes nothing. Built-in names take precedence, so a plug-in cannot replace one.
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
GENERATORS = "gaprune.generators."  # followed by the kind of input, such as `vector`
MUTATIONS = "gaprune.mutations"
CROSSOVERS = "gaprune.crossovers"
PRESETS = "gaprune.presets"
EXPORTERS = "gaprune.exporters"


class Plugin(NamedTuple):
    """An installed entry point that has not been imported.

    Attributes:
        group: what it extends, such as `gaprune.criteria`.
        name: as users write it.
        location: `module:attribute`.
        package: its package with the version, or empty.
    """

    group: str
    name: str
    location: str
    package: str

    @property
    def title(self) -> str:
        """Name and origin, for messages."""
        return f"plug-in {self.name!r} ({self.package or 'no package'}: {self.location})"


def installed_plugins(group: str = "") -> list[Plugin]:
    """Return the plug-ins of a group, or of all groups of gaprune, sorted by name.

    Of several plug-ins with one name the first by location counts, so the order of installation
    does not matter.
    """
    return list(_installed(group, tuple(sys.path)))


@lru_cache(maxsize=64)  # every batch of calibration inputs asks, and reading takes milliseconds
def _installed(group: str, _path: tuple[str, ...]) -> tuple[Plugin, ...]:
    first: dict[tuple[str, str], Plugin] = {}
    for name in [group] if group else metadata.entry_points().groups:
        if not name.startswith("gaprune."):
            continue
        for point in sorted(metadata.entry_points(group=name), key=lambda point: point.value):
            # an entry point that was created by hand has no distribution
            package = f"{point.dist.name} {point.dist.version}" if point.dist else ""
            plugin = Plugin(point.group, point.name, point.value, package)
            first.setdefault((point.group, point.name), plugin)
    return tuple(sorted(first.values()))


def plugin_names(group: str, builtin: Collection[str]) -> list[str]:
    """Return the names that plug-ins add to the built-in ones."""
    return [plugin.name for plugin in installed_plugins(group) if plugin.name not in builtin]


def find_plugin(group: str, name: str, read: Callable[[Plugin, Any], T]) -> T | None:
    """Return a plug-in by name, or None if there is none.

    Args:
        group: where to look.
        name: from the user, and not built in.
        read: turns the object of the entry point into what the group needs.

    Raises:
        InputError: importing it fails, or `read` refuses it.
    """
    for plugin in installed_plugins(group):
        if plugin.name == name:
            return read(plugin, load_plugin(plugin))
    return None


def load_plugin(plugin: Plugin) -> Any:  # noqa: ANN401 - entry points hold any object
    """Import a plug-in and return its object.

    Raises:
        InputError: the import raises, or the attribute does not exist.
    """
    point = metadata.EntryPoint(plugin.name, plugin.location, plugin.group)
    try:
        return point.load()
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{plugin.title}: its import raised {type(error).__name__}: {error}; fix the package, "
            "or uninstall it"
        ) from error


def load_plugins(
    group: str, builtin: Collection[str], read: Callable[[Plugin, Any], T]
) -> dict[str, T]:
    """Return all valid plug-ins of a group by name.

    Warns:
        UserWarning: for each invalid one.
    """
    valid: dict[str, T] = {}
    for plugin in installed_plugins(group):
        try:
            check_name(plugin, builtin)
            valid[plugin.name] = read(plugin, load_plugin(plugin))
        except InputError as error:
            warnings.warn(f"{error}; it is ignored", stacklevel=2)
    return valid


def check_name(plugin: Plugin, builtin: Collection[str]) -> None:
    """Check that a plug-in does not use a built-in name.

    Raises:
        InputError: it does.
    """
    if plugin.name in builtin:
        raise InputError(f"{plugin.title}: {plugin.name!r} is built in, in {plugin.group}")


def require_type(kind: type[T]) -> Callable[[Plugin, object], T]:
    """Return a reader, for `find_plugin`, that accepts objects of type `kind` only."""

    def read(plugin: Plugin, value: object) -> T:
        if not isinstance(value, kind):
            name = f"{kind.__module__}.{kind.__name__}"
            raise InputError(f"{plugin.title}: must be a {name}, got {type(value).__name__}")
        return value

    return read


def require_function(plugin: Plugin, value: object) -> Callable[..., Any]:
    """Return the object of a plug-in, which must be a function.

    Raises:
        InputError: it cannot be called.
    """
    if not callable(value):
        raise InputError(f"{plugin.title}: must be a function, got {type(value).__name__}")
    return value
