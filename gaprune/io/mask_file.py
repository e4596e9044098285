"""Write and read mask files: uint8 masks that other tools read, and one bit per weight."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from gaprune.errors import GapruneError, InputError
from gaprune.io.atomic import write_file
from gaprune.io.bounded_reading import parse_json
from gaprune.io.serialization import from_metadata, to_metadata
from gaprune.io.tensor_files import open_tensors
from gaprune.io.weights import sha256_of
from gaprune.masks.supermask import pack, unpack

SUFFIX = ".safetensors"
PACKED = "gaprune packed masks"


def save_masks(masks: Mapping[str, Tensor], path: str | Path, **about: str) -> Path:
    """Write masks as uint8 tensors of 0 and 1, the format of a run's `mask.safetensors`.

    Args:
        masks: parameter name → bool tensor of the parameter's shape, true where the weight stays.
        path: ends in `.safetensors`; its folder exists. A file there is replaced as a whole.
        about: facts for the file's metadata, such as `target="lenet"`.

    Raises:
        InputError: no masks, a mask that is not bool, another suffix.
        GapruneError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise InputError(f"path: masks are saved as {SUFFIX}, got {path}")
    if not masks:
        raise InputError("masks: there are none to save")
    for name, mask in masks.items():
        if mask.dtype != torch.bool:
            raise InputError(f"masks[{name!r}]: must be bool, got {mask.dtype}")
    try:
        # under a hidden name first, so that no reader sees an incomplete file
        write_file(path, mask_bytes(masks, **about))
    except OSError as error:
        raise GapruneError(
            f"path: cannot write {path} ({error.strerror or error}); name a file in an existing "
            "folder that you may write to"
        ) from error
    return path


def mask_bytes(masks: Mapping[str, Tensor], kind: str = "gaprune mask", **about: str) -> bytes:
    """Return the content of a mask file: uint8 tensors of 0 and 1, with a SHA-256 of them."""
    stored = {name: mask.to("cpu", torch.uint8).contiguous() for name, mask in masks.items()}
    return save(stored, to_metadata(format=kind, sha256=sha256_of(stored), **about))


def check_mask_file(stored: Mapping[str, Tensor], path: Path) -> None:
    """Raise unless tensors are masks, with the SHA-256 in the metadata of their file, if any.

    Raises:
        InputError: they are not.
    """
    for name, mask in stored.items():
        if mask.dtype != torch.uint8 or (mask > 1).any():
            raise InputError(
                f"mask: {path} must hold uint8 tensors of 0 and 1, which {name!r} ({mask.dtype}) "
                "is not; name the mask.safetensors of a run"
            )
    if path.suffix.lower() != SUFFIX:
        return
    with open_tensors(path) as file:
        sha256 = from_metadata(file.metadata()).get("sha256")
    if sha256 not in (None, sha256_of(stored)):
        raise InputError(
            f"mask: {path} is damaged (its SHA-256 is not the one in its metadata); export or "
            "fetch it again"
        )


def packed_bytes(masks: Mapping[str, Tensor], **about: str) -> bytes:
    """Return the content of a file with one bit per weight, which `gaprune.load_masks` reads.

    Each parameter is uint8 `[⌈n/8⌉]`, the first weight in the highest bit. The metadata holds the
    shapes and a SHA-256 of bits and shapes, because any bits are valid masks.
    """
    # safetensors has no type of one bit
    bits = {name: torch.from_numpy(pack(mask.reshape(-1))) for name, mask in masks.items()}
    shapes = json.dumps({name: list(mask.shape) for name, mask in masks.items()})
    metadata = to_metadata(format=PACKED, shapes=shapes, sha256=_sha256(bits, shapes), **about)
    return save(bits, metadata)


def packed_shapes(path: Path) -> dict[str, list[int]] | None:
    """Return the shapes of a file with packed masks, None for others; InputError if damaged."""
    if path.suffix.lower() != SUFFIX:
        return None
    try:
        with open_tensors(path) as file:
            facts = from_metadata(file.metadata())
            if facts.get("format") != PACKED:
                return None
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
        sha256 = _sha256(stored, facts["shapes"])
        shapes = dict(parse_json(facts["shapes"]))
    except (ValueError, TypeError, KeyError, SafetensorError) as error:
        raise InputError(f"mask: {path} is damaged ({error}); export or fetch it again") from error
    if facts.get("sha256", sha256) != sha256:  # files of older versions have none
        raise InputError(
            f"mask: {path} is damaged (its SHA-256 is not the one in its metadata); export or "
            "fetch it again"
        )
    return shapes


def unpack_masks(
    stored: Mapping[str, Tensor], shapes: Mapping[str, list[int]], path: Path
) -> dict[str, Tensor]:
    """Return the masks of a file with packed bits; InputError if they do not fit the shapes."""
    # the last byte of a mask may be incomplete: round up
    sizes = {name: -(-prod(shape) // 8) for name, shape in shapes.items()}
    if {name: bits.numel() for name, bits in stored.items()} != sizes or any(
        bits.dtype != torch.uint8 for bits in stored.values()
    ):
        raise InputError(
            f"mask: {path} is damaged (bits that do not fit its shapes); fetch it again"
        )
    return {
        name: unpack(stored[name].numpy(), prod(shape)).view(shape)
        for name, shape in shapes.items()
    }


def _sha256(bits: Mapping[str, Tensor], shapes: str) -> str:
    return hashlib.sha256(f"{sha256_of(bits)} {shapes}".encode()).hexdigest()
