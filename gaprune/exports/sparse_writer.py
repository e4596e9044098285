"""Writes the sparse file of `docs/sparse-format.md`, which `gaprune.io.sparse` reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import zstandard
from safetensors.torch import save
from torch import Tensor

from gaprune.errors import InputError
from gaprune.exports.clustering import shared_values
from gaprune.exports.pruned_network import ExportOptions, to_half
from gaprune.io import sparse
from gaprune.io.serialization import to_metadata
from gaprune.io.sparse import DTYPES, SKIP
from gaprune.masks.supermask import check_masks

LEVEL = 19  # of 22 levels of Zstandard: the highest that needs no more memory for reading


def sparse_bytes(
    state: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    options: ExportOptions,
    **metadata: str,
) -> bytes:
    """Return the content of a sparse file; equal networks give equal bytes.

    Args:
        state: the state dict of the pruned network, 0 where a mask removes a weight.
        masks: parameter name → bool of its shape. Tensors without a mask are stored whole and
            never rounded.
        options: how kept weights are stored.
        metadata: facts about the run.

    Raises:
        InputError: a mask without a tensor or over weights that aren't 0, a dtype that the format
            lacks, or weights that float16 can't hold.
    """
    check_masks(masks, state)
    table: dict[str, Any] = {}
    data: dict[str, bytes] = {}
    first: dict[str, str] = {}
    # Tied parameters have equal content: the one with the mask is stored, the others refer to it.
    for name in sorted(state, key=lambda name: name not in masks):
        identity = _identity(state[name], name)
        if first.setdefault(identity, name) != name and name not in masks:
            table[name] = {"same_as": first[identity]}
        else:
            table[name], data[name] = _encode(name, state[name], masks.get(name), options)
    plain = json.dumps({name: table[name] for name in state}, separators=(",", ":")).encode()
    stored = _compress(plain) if options.compress else plain
    size = str(len(plain)) if options.compress else ""
    facts = {"format": sparse.FORMAT, "version": sparse.VERSION, "table": size, **metadata}
    content = b"".join(data[name] for name in state if name in data)
    tensors = {
        name: torch.from_numpy(np.frombuffer(part, np.uint8).copy())
        for name, part in ((sparse.DATA, content), (sparse.TABLE, stored))
    }
    return save(tensors, to_metadata(**facts, sha256=sparse.table_sha256(facts, stored)))


def _identity(tensor: Tensor, name: str) -> str:
    """Return a text that only tensors of equal bits share; single numbers are never shared."""
    if tensor.numel() < 2:
        return name
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{tensor.dtype} {list(tensor.shape)} {hashlib.sha256(content.data).hexdigest()}"


def _encode(
    name: str, tensor: Tensor, mask: Tensor | None, options: ExportOptions
) -> tuple[dict[str, Any], bytes]:
    """Return the table entry of a tensor, and its bytes."""
    if tensor.dtype not in DTYPES.values():
        raise InputError(f"state[{name!r}]: must be of {', '.join(DTYPES)}, got {tensor.dtype}")
    values = tensor.detach().cpu().reshape(-1)
    facts: dict[str, Any] = {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
    }
    data = b""
    if mask is not None:
        # Weights outside the mask are not stored, so they must be 0.
        keep = mask.cpu().reshape(-1)
        if values[~keep].count_nonzero():
            raise InputError(
                f"state[{name!r}]: has weights that its mask removes; give the state of the pruned "
                "network"
            )
        values = values[keep]
        facts["kept"] = len(values)
        data = _distances(np.flatnonzero(keep.numpy()))
    # Only weights under a mask are rounded, and only those of a wider type.
    codes = None
    if mask is not None and len(values) and tensor.dtype in (torch.float32, torch.float64):
        if options.half:
            facts["stored_as"], values = "float16", to_half(name, values)
        elif options.codebook is not None:
            book, codes = shared_values(values, options.codebook)
            # A codebook that hardly any weights share would take more room than the weights.
            if 2 * len(book) <= len(values):
                facts["codebook"], values = len(book), book
            else:
                codes = None
    data += _planes(values)
    if codes is not None:
        data += _planes(codes.to(sparse.code_dtype(len(values))))
    smaller = _compress(data) if options.compress and data else data
    # Tiny tensors grow when compressed.
    stored = min(data, smaller, key=len)
    facts["bytes"] = [len(stored), len(data)] if len(stored) < len(data) else [len(data)]
    facts["sha256"] = sparse.entry_sha256(np.frombuffer(stored, np.uint8))
    return facts, stored


def _distances(positions: np.ndarray) -> bytes:
    """Encode ascending positions in one byte each: skip b positions, keep the next one."""
    skipped = np.diff(positions, prepend=-1) - 1
    # An end is the index of the byte that keeps a weight.
    ends = np.cumsum(skipped // SKIP + 1)  # a byte for every 255 skipped, and one that keeps
    distances = np.full(ends[-1] if len(ends) else 0, SKIP, dtype=np.uint8)
    distances[ends - 1] = skipped % SKIP
    return distances.tobytes()


def _planes(values: Tensor) -> bytes:
    """Return the bytes of values: all bytes of lowest significance first, then the next ones."""
    if not len(values):
        return b""
    # Bytes of equal significance resemble each other, so that Zstandard finds patterns.
    return values.contiguous().view(torch.uint8).numpy().reshape(len(values), -1).T.tobytes()


def _compress(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=LEVEL).compress(data)
