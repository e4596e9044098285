"""What the search was shown, provably: levels of the data ladder, hashes, the provenance."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch

from gaprune.calibration.samples import Samples
from gaprune.errors import unknown_name
from gaprune.records import Provenance

DATA_LEVELS = ("none", "noise", "procedural", "inversion", "proxy", "unlabelled", "labelled")
"""The data ladder, from what needs least to what needs most."""


def highest_level(levels: Iterable[str]) -> str:
    """Return the level that needs most data, `none` when there is none.

    Raises:
        InputError: a name that is no level.
    """
    top = 0
    for level in levels:
        if level not in DATA_LEVELS:
            raise unknown_name("level", level, DATA_LEVELS)
        top = max(top, DATA_LEVELS.index(level))
    return DATA_LEVELS[top]


def samples_sha256(samples: Samples | None) -> str:
    """Return the SHA-256 (hex) of the dtypes, shapes and bytes of inputs and labels.

    Absent labels are hashed as such, so they cannot be mistaken for an empty tensor.
    """
    digest = hashlib.sha256()
    for tensor in () if samples is None else (samples.inputs, samples.labels):
        if tensor is None:
            digest.update(b"absent;")
            continue
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)};".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def make_provenance(
    levels: Iterable[str],
    sources: Sequence[str],
    held: Samples | None,
    validation: Samples | None,
    *,
    fresh: bool,
) -> Provenance:
    """Build the provenance of a run.

    Args:
        levels: every level that was used.
        sources: one line per generator or file that the search saw, in words.
        held: what the search held; None where nothing was held. Labels that were not used must be
            None here, since they enter the hash.
        validation: the validation inputs set; None where there is none.
        fresh: whether new inputs were drawn at every step as well.

    Raises:
        InputError: a name that is no level.
    """
    return Provenance(
        level=highest_level(levels),
        sources=tuple(sources),
        samples=0 if held is None else len(held.inputs),
        fresh=fresh,
        sha256=samples_sha256(held),
        validation="none" if validation is None else validation.source,
        validation_samples=0 if validation is None else len(validation.inputs),
        validation_sha256=samples_sha256(validation),
    )
