"""2:4 for CUDA: checked in every group, and packed as torch packs it where the type allows.

Tensor cores take two of four weights in float16 and bfloat16, of linear layers whose sizes fit.
Packing needs no GPU; running does, through `torch.sparse.to_sparse_semi_structured`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from gaprune.errors import GapruneError, InputError
from gaprune.export.pruned_network import PrunedNetwork
from gaprune.export.sparse_entries import ExportOptions
from gaprune.export.state_dicts import MODEL
from gaprune.io.semi_structured_packing import HALVES, packed
from gaprune.io.serialization import to_json
from gaprune.io.weights import load_state, sha256_of

PROVENANCE = "semi-structured.json"
SCHEMA, KEEP, OF = 1, 2, 4
ROWS, COLUMNS = 32, 64  # of a float16 weight that CUDA takes: multiples of these


def write_semi_structured(pruned: PrunedNetwork, folder: Path, how: ExportOptions) -> None:
    """Write a state dict in which weights that hold 2:4 are packed, with a provenance of them.

    A float32 network stays as it is: torch packs 2:4 in 16 bits alone, and `--half` rounds to them.

    Raises:
        GapruneError: no linear layer holds the pattern.
        InputError: with `half`, a weight is more than float16 holds.
    """
    layers = conforming(pruned.masks)
    if not layers:
        raise GapruneError(
            "semi-structured: no linear layer of this run keeps at most 2 of every 4 weights along "
            "its inputs; prune with --pattern 2:4, or export it as sparse"
        )
    state = {name: _stored(name, value, half=how.half) for name, value in pruned.state.items()}
    chosen = [name for name in layers if takes(state[name]) and state[name].dtype in HALVES]
    written: dict[str, Tensor] = {}
    for name, value in state.items():
        written |= packed(name, value) if name in chosen else {name: value}
    save_file({name: one.contiguous() for name, one in written.items()}, folder / MODEL)
    provenance = {
        "schema": SCHEMA,
        "pattern": f"{KEEP}:{OF}",
        "layers": {name: _facts(state[name], packed=name in chosen) for name in layers},
        "other": [name for name in pruned.masks if name not in layers],
    }
    (folder / PROVENANCE).write_text(to_json(provenance, indent=2) + "\n", encoding="utf-8")
    if sha256_of(load_semi_structured(folder)) != sha256_of(state):
        raise GapruneError(
            "export: the file read back is not what was written; check the disk, and try again"
        )


def conforming(masks: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the matrices of which at most 2 of every 4 weights along the inputs stay."""
    return tuple(
        name
        for name, mask in masks.items()
        if mask.ndim == 2
        and mask.shape[1] % OF == 0
        and bool((mask.reshape(-1, OF).sum(1) <= KEEP).all())
    )


def takes(weight: Tensor) -> bool:
    """Tell whether a matrix has sizes that CUDA takes in 16 bits."""
    rows, columns = weight.shape
    return rows % ROWS == 0 and columns % COLUMNS == 0


def load_semi_structured(folder: str | Path) -> dict[str, Tensor]:
    """Return the state dict of an export, unpacked: for the original class, on any device.

    Raises:
        InputError: damaged files.
    """
    place = Path(folder)
    try:
        state = load_state(place / MODEL)
        layers: dict[str, Any] = json.loads((place / PROVENANCE).read_text("utf-8"))["layers"]
    except (OSError, ValueError, KeyError, TypeError) as error:  # InputErrors too: damaged files
        raise InputError(
            f"file: {folder} holds no sound semi-structured export ({error}); export it again"
        ) from error
    if missing := set(layers) - set(state):
        raise InputError(
            f"file: {folder} holds no sound semi-structured export ({PROVENANCE} speaks of "
            f"{min(missing)}, which {MODEL} lacks); export it again"
        )
    return state


def _stored(name: str, value: Tensor, *, half: bool) -> Tensor:
    value = value.detach().cpu().clone()
    if not half or not value.is_floating_point():
        return value
    rounded = value.to(torch.float16)
    if (rounded.isinf() & ~value.isinf()).any():
        raise InputError(f"half: {name!r} holds more than float16 does (65,504); leave half out")
    return rounded


def _facts(weight: Tensor, *, packed: bool) -> dict[str, Any]:
    return {
        "shape": list(weight.shape),
        "groups": weight.numel() // OF,
        "packed": packed,
        "sizes_fit_cuda": takes(weight),
    }
