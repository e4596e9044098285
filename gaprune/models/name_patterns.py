"""Patterns that users write for parameters: names, globs and layer types."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from gaprune.errors import InputError, describe

_MAX_LISTED = 5  # names listed in a message


def matching_parameters(
    model: nn.Module, patterns: str | Sequence[str], argument: str
) -> dict[str, list[str]]:
    """Return pattern → the names of the parameters that it fits, in order of registration.

    A pattern fits a parameter (`fc1.bias`), all parameters of a layer or block (`encoder.0`), or
    those of layers of a type (`Embedding`; with a base class, of its subclasses), also by the name
    of one parameter (`MyLayer.weight`). `*`, `?` and `[…]` are wildcards. A tied parameter has
    several names, and each counts.

    Raises:
        InputError: a pattern fits nothing; the message calls it `argument`.
    """
    aliases = {
        name: set(_aliases(model, name))
        for name, _ in model.named_parameters(remove_duplicate=False)
    }
    matches: dict[str, list[str]] = {}
    for pattern in dict.fromkeys((patterns,) if isinstance(patterns, str) else patterns):
        matches[pattern] = [
            name
            for name, texts in aliases.items()
            if pattern in texts or any(fnmatchcase(text, pattern) for text in texts)
        ]
        if not matches[pattern]:
            known = [*aliases, *sorted(set().union(*aliases.values()) - set(aliases))]
            near = difflib.get_close_matches(str(pattern), known, n=_MAX_LISTED, cutoff=0.4)
            listed = ", ".join(near or list(aliases)[:_MAX_LISTED]) or "none"
            raise InputError(
                f"{argument}: the network has no parameter, layer or layer type {pattern!r}; "
                f"nearest of its {len(aliases)} parameters: {listed}"
            )
    return matches


def layer_patterns(model: nn.Module, parts: object, argument: str) -> tuple[str, ...]:
    """Return patterns as texts; a layer, a parameter or a type of layers stands for its name.

    Raises:
        InputError: a part is none of these, or no part of the network.
    """
    several = parts if isinstance(parts, (list, tuple, set, frozenset, nn.ModuleList)) else (parts,)
    names = {
        id(part): name for name, part in (*model.named_parameters(), *model.named_modules()) if name
    }
    patterns = []
    for part in several:
        name = part if isinstance(part, str) else names.get(id(part))
        name = part.__name__ if isinstance(part, type) else name
        if name is None:
            raise InputError(
                f"{argument}: must be names, globs, or layers and layer types of the network, got "
                f"{describe(part)}"
            )
        patterns.append(name)
    return tuple(patterns)


def _aliases(model: nn.Module, name: str) -> Iterator[str]:
    """Yield every text by which a parameter can be named."""
    yield name
    parts = name.split(".")
    for depth in range(len(parts)):
        rest = ".".join(parts[depth:])
        module = model.get_submodule(path := ".".join(parts[:depth]))
        types = type(module).__mro__[: type(module).__mro__.index(nn.Module)]
        yield from (f"{base.__name__}.{rest}" for base in types)
        if path:
            yield path
        if path or depth == len(parts) - 1:  # the type of the whole network is no choice
            yield from (base.__name__ for base in types)
