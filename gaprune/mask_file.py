"""Write masks to a file that `gaprune.load_masks` and every other tool reads."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from gaprune.errors import GapruneError, InputError
from gaprune.formats import to_stamp

SUFFIX = ".safetensors"


def save_masks(masks: Mapping[str, Tensor], path: str | Path, **about: str) -> Path:
    """Write masks as uint8 tensors of 0 and 1, the format of a run's `mask.safetensors`.

    The file takes its name once it is complete; a file of that name is replaced.

    Args:
        masks: parameter name → bool tensor of the parameter's shape, true where the weight stays.
        path: ends in `.safetensors`; its folder exists.
        about: facts for the file's metadata, such as `target="lenet"`.

    Returns:
        The path.

    Raises:
        InputError: no masks, one that is not bool, another suffix.
        GapruneError: the place cannot be written.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise InputError(f"path: masks are saved as {SUFFIX}, got {path}")
    if not masks:
        raise InputError("masks: there are none to save")
    for name, mask in masks.items():
        if mask.dtype != torch.bool:
            raise InputError(f"masks[{name!r}]: must be bool, got {mask.dtype}")
    stored = {name: mask.to(torch.uint8).cpu().contiguous() for name, mask in masks.items()}
    content = save(stored, to_stamp(format="gaprune mask", **about))
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        try:
            partial.write_bytes(content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise GapruneError(
            f"path: cannot write {path} ({error.strerror or error}); name a place in a folder that "
            "exists and that you may write to"
        ) from error
    return path
