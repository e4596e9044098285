"""Plug-ins: extensions in other packages, declared as Python entry points by group and name.

A plug-in is looked up and imported when its name is requested: a package that is only installed
changes nothing. Built-in names take precedence, so a plug-in cannot replace one.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from importlib import metadata
from typing import Any, NamedTuple, TypeVar

from gaprune.errors import InputError, unknown_name

T = TypeVar("T")

CRITERIA = "gaprune.criteria"
OBJECTIVES = "gaprune.objectives"
GENERATORS = "gaprune.generators."  # followed by the kind of input, such as `vector`
MUTATIONS = "gaprune.mutations"
CROSSOVERS = "gaprune.crossovers"
PRESETS = "gaprune.presets"
EXPORTERS = "gaprune.exporters"


class Plugin(NamedTuple):
    """An installed entry point that has not been imported."""

    group: str  # what it extends, such as `gaprune.criteria`
    name: str  # as users write it
    location: str  # `module:attribute`
    package: str  # its package with the version, or empty

    @property
    def title(self) -> str:
        """Name and origin, for messages."""
        return f"plug-in {self.name!r} ({self.package or 'no package'}: {self.location})"


def installed_plugins(group: str = "") -> list[Plugin]:
    """Return the plug-ins of a group, or of all groups of gaprune, sorted by name."""
    return list(_installed(group, tuple(sys.path)))


@lru_cache(maxsize=64)  # every batch of calibration inputs asks, and reading takes milliseconds
def _installed(group: str, _path: tuple[str, ...]) -> tuple[Plugin, ...]:
    first: dict[tuple[str, str], Plugin] = {}
    for name in [group] if group else metadata.entry_points().groups:
        if not name.startswith("gaprune."):
            continue
        # of several with one name the first by location counts: the order of installation does not
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
    """Return what `read` makes of a plug-in, or None where no plug-in has this name.

    Raises:
        InputError: importing it fails, or `read` refuses it.
    """
    for plugin in installed_plugins(group):
        if plugin.name == name:
            return read(plugin, load_plugin(plugin))
    return None


def find_extension(
    what: str, name: str, builtin: Mapping[str, T], group: str, read: Callable[[Plugin, Any], T]
) -> T:
    """Return a built-in extension by name, or one of a plug-in; `what` names the argument.

    Raises:
        InputError: an unknown name (the message lists the valid ones), or a broken plug-in.
    """
    # built-in names win: a plug-in cannot change what a configuration file means
    extension = builtin.get(name) or find_plugin(group, name, read)
    if extension is None:
        raise unknown_name(what, name, [*builtin, *plugin_names(group, builtin)])
    return extension


def load_plugin(plugin: Plugin) -> Any:  # noqa: ANN401 - entry points hold any object
    """Import a plug-in and return its object; raise InputError if that fails."""
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
    """Return all valid plug-ins of a group by name; a warning names each invalid one."""
    valid: dict[str, T] = {}
    for plugin in installed_plugins(group):
        try:
            check_name(plugin, builtin)
            valid[plugin.name] = read(plugin, load_plugin(plugin))
        except InputError as error:
            warnings.warn(f"{error}; it is ignored", stacklevel=2)
    return valid


def check_name(plugin: Plugin, builtin: Collection[str]) -> None:
    """Raise InputError if a plug-in has a built-in name."""
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
    """Return the object of a plug-in; raise InputError if it cannot be called."""
    if not callable(value):
        raise InputError(f"{plugin.title}: must be a function, got {type(value).__name__}")
    return value
