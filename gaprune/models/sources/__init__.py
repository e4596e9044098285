"""Where networks come from, beside the zoo and factory files: `timm:NAME` and `hf:NAME`.

Every source gives a network that takes one tensor and returns one, with its trained weights, what
is known about its input, and where both came from. Nothing is downloaded unless that is allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gaprune.errors import InputError, unknown_name
from gaprune.models.sources.hf import load_hf
from gaprune.models.sources.loaded import Loaded, Wanted
from gaprune.models.sources.outputs import check_one_input, choose_output, describe_outputs
from gaprune.models.sources.timm import load_timm

__all__ = [
    "SOURCES",
    "Loaded",
    "Source",
    "Wanted",
    "check_one_input",
    "choose_output",
    "describe_outputs",
    "is_sourced",
    "load_source",
]


@dataclass(frozen=True)
class Source:
    """One scheme.

    Attributes:
        scheme: what stands before the colon.
        load: gives the network.
        extra: the extra of gaprune that it needs.
        description: one line for people.
    """

    scheme: str
    load: Callable[[Wanted], Loaded]
    extra: str
    description: str


SOURCES: dict[str, Source] = {
    source.scheme: source
    for source in (
        Source("timm", load_timm, "timm", "timm:NAME, a network of PyTorch Image Models"),
        Source("hf", load_hf, "hf", "hf:NAME, a network of transformers: a folder or a hub name"),
    )
}


def is_sourced(spec: str) -> bool:
    """Whether a target's name begins with one of the schemes, such as `timm:`."""
    scheme, colon, _ = spec.partition(":")
    return bool(colon) and scheme in SOURCES


def load_source(
    spec: str,
    *,
    weights: Path | None = None,
    output: str | int | None = None,
    allow_download: bool = False,
) -> Loaded:
    """Load the network that `SCHEME:NAME` names.

    Args:
        spec: a key of `SOURCES`, a colon, the name.
        weights: a checkpoint of the user's own instead of the pretrained weights.
        output: which of its outputs is compared (see `choose_output`); None: the usual one.
        allow_download: fetch what is not on this machine; otherwise that is an error.

    Raises:
        InputError: an unknown scheme or name, or weights that are not at hand or don't fit.
        GapruneError: the source's package is not installed.
    """
    scheme, _, name = spec.partition(":")
    if scheme not in SOURCES:
        raise unknown_name("target", scheme, SOURCES)
    if not name:
        raise InputError(f"target: {spec!r} names no network; {SOURCES[scheme].description}")
    return SOURCES[scheme].load(Wanted(name, weights, output, allow_download))
