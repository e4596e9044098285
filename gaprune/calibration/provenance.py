"""The provenance of a run: which inputs it used, how many, their hash, and the data level."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch

from gaprune.calibration.samples import Samples
from gaprune.errors import unknown_name
from gaprune.records import Provenance

DATA_LEVELS = ("none", "noise", "procedural", "inversion", "proxy", "unlabelled", "labelled")
"""What had to be known to make the inputs, from the least to the most."""


def highest_level(levels: Iterable[str]) -> str:
    """Return the level that needs the most data; `none` for an empty list.

    Raises:
        InputError: an unknown level.
    """
    rank = 0
    for level in levels:
        if level not in DATA_LEVELS:
            raise unknown_name("data level", level, DATA_LEVELS)
        rank = max(rank, DATA_LEVELS.index(level))
    return DATA_LEVELS[rank]


def samples_sha256(samples: Samples | None) -> str:
    """Return the SHA-256 (hex) of the dtypes, shapes and bytes of inputs and labels."""
    digest = hashlib.sha256()
    for tensor in () if samples is None else (samples.inputs, samples.labels):
        if tensor is None:
            # Missing labels are hashed as well, so that they differ from every tensor.
            digest.update(b"absent;")
            continue
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)};".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def make_provenance(
    levels: Iterable[str],
    sources: Sequence[str],
    stored: Samples | None,
    validation: Samples | None,
    *,
    fresh: bool,
) -> Provenance:
    """Build the provenance of a run.

    Args:
        levels: every data level that was used.
        sources: one line per generator or file, for people.
        stored: the inputs that the search keeps in memory, or None. Labels that the search does
            not use must be None, because they enter the hash.
        validation: the validation inputs, or None.
        fresh: whether gradient steps also draw new inputs.

    Raises:
        InputError: an unknown level.
    """
    return Provenance(
        level=highest_level(levels),
        sources=tuple(sources),
        samples=0 if stored is None else len(stored.inputs),
        fresh=fresh,
        sha256=samples_sha256(stored),
        validation="none" if validation is None else validation.source,
        validation_samples=0 if validation is None else len(validation.inputs),
        validation_sha256=samples_sha256(validation),
    )
