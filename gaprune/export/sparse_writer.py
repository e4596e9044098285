"""The sparse file, written: see `docs/sparse-format.md`, and `gaprune.io.sparse` that reads it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from gaprune.errors import InputError, unknown_name
from gaprune.export.sparse_entries import ExportOptions, write_entry
from gaprune.io.serialization import to_stamp
from gaprune.io.sparse import FORMAT, TABLE, VERSION
from gaprune.io.sparse.compression import squeeze
from gaprune.io.sparse.file import stamp_sha256
from gaprune.masks.supermask import check_mask


def sparse_bytes(
    state: Mapping[str, Tensor], masks: Mapping[str, Tensor], how: ExportOptions, **about: str
) -> bytes:
    """Return the content of a sparse file.

    Args:
        state: the network's state dict; what the masks drop is 0.
        masks: parameter name → bool of its shape. Tensors without a mask are stored whole or by
            what is not 0, whichever is smaller, and never rounded.
        how: of the kept weights.
        about: facts for the metadata.

    Raises:
        InputError: a mask without a tensor, or over values that are not 0; `ExportOptions.check`.
        GapruneError: an optional package is not installed.
    """
    how.check()
    _check(state, masks)
    table: dict[str, Any] = {}
    stored: dict[str, Tensor] = {}
    first: dict[tuple[str, str], str] = {}
    for name in sorted(state, key=lambda one: one not in masks):  # tied ones after the masked one
        tensor = state[name]
        twin = first.setdefault(_identity(tensor, name), name)
        if twin != name and name not in masks:
            table[name] = {"same_as": twin}
            continue
        table[name], data = write_entry(tensor, masks.get(name), how)
        stored[name] = torch.from_numpy(data.copy())
    plain = json.dumps({name: table[name] for name in state}, separators=(",", ":")).encode()
    small = squeeze(np.frombuffer(plain, np.uint8)).tobytes() if how.compress else plain
    size = str(len(plain)) if how.compress else ""
    facts = {"format": FORMAT, "version": VERSION, "table": size, **about}
    stored[TABLE] = torch.frombuffer(bytearray(small), dtype=torch.uint8)
    return save(stored, to_stamp(**facts, sha256=stamp_sha256(facts, small)))


def _check(state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    for name, mask in masks.items():
        if name not in state:
            raise unknown_name("masks", name, state)
        check_mask(f"masks[{name!r}]", mask, state[name].shape)
        if state[name][~mask.to(state[name].device)].count_nonzero():
            raise InputError(
                f"state[{name!r}]: has weights that its mask drops; give the pruned network's state"
            )


def _identity(tensor: Tensor, name: str) -> tuple[str, str]:
    """Tell tensors of the same bits from others; counters and empty ones are never shared."""
    if tensor.numel() < 2:
        return name, ""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return f"{tensor.dtype} {list(tensor.shape)}", hashlib.sha256(data).hexdigest()
