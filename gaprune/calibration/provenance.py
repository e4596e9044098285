"""What the provenance of a run proves: the data level, and the hash of the inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch

from gaprune.calibration.samples import Samples

DATA_LEVELS = ("none", "noise", "procedural", "inversion", "proxy", "unlabelled", "labelled")
"""What had to be known to make the inputs, from the least to the most."""


def highest_level(levels: Iterable[str]) -> str:
    """Return the level that needs the most data; `none` for an empty list."""
    return DATA_LEVELS[max((DATA_LEVELS.index(level) for level in levels), default=0)]


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
