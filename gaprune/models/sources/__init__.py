"""Networks of other libraries: `timm:NAME` and `hf:NAME`.

Each source returns a network with trained weights that takes one tensor and returns one. Nothing
is downloaded unless the user allows it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gaprune.errors import InputError
from gaprune.models.network import LoadedNetwork
from gaprune.models.sources.hf import load_hf
from gaprune.models.sources.timm import load_timm

SOURCES: dict[str, Callable[..., LoadedNetwork]] = {
    "timm": load_timm,
    "hf": load_hf,
}
"""Scheme → function with the arguments of `load_source`, and a name instead of `spec`."""


def is_sourced(spec: str) -> bool:
    """Tell whether a target's name begins with one of the schemes, such as `timm:`."""
    scheme, colon, _ = spec.partition(":")
    return bool(colon) and scheme in SOURCES


def load_source(
    spec: str,
    *,
    weights: Path | None = None,
    weights_key: str | None = None,
    output: str | int | None = None,
    tower: str | None = None,
    allow_download: bool = False,
) -> LoadedNetwork:
    """Load the network that `SCHEME:NAME` names.

    `weights` is the user's own checkpoint instead of the pretrained one, `weights_key` one of
    several state dicts in it; `output` chooses one of several (see `choose_output`), None the usual
    one; `tower` a part (`choose_tower`); files that are not on this machine are an error without
    `allow_download`.

    Raises:
        InputError: an unknown scheme or name, or weights that are not available or don't fit.
        GapruneError: the source's package is not installed.
    """
    scheme, _, name = spec.partition(":")
    if not name:
        raise InputError(f"target: {spec!r} names no network; write {scheme}:NAME")
    return SOURCES[scheme](name, weights, weights_key, output, tower, allow_download)
