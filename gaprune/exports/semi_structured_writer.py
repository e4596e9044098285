"""Weights in the 2:4 pattern for CUDA: checked in every group, and packed in 16 bits.

Sparse tensor cores compute linear layers of float16 and bfloat16 of which 2 of every 4 weights
are 0. Packing needs no GPU; running them does (`torch.sparse.to_sparse_semi_structured`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from gaprune.errors import GapruneError, InputError
from gaprune.exports.pruned_network import ExportOptions, PrunedNetwork, check_written, to_half
from gaprune.exports.writers import MODEL
from gaprune.io.bounded_reading import read_object, reason
from gaprune.io.manifest import check_recorded
from gaprune.io.semi_structured_packing import HALVES, packed
from gaprune.io.serialization import to_json
from gaprune.io.weights import load_state

LAYERS = "semi-structured.json"
SCHEMA, KEEP, OF = 1, 2, 4
ROWS, COLUMNS = 32, 64  # CUDA takes 16-bit weights whose sizes are multiples of these


def write_semi_structured(pruned: PrunedNetwork, folder: Path, options: ExportOptions) -> None:
    """Write a state dict in which 2:4 weights of 16 bits are packed, and a file that lists them.

    A float32 network isn't packed unless `half` rounds it, as torch packs 16-bit weights only.

    Raises:
        GapruneError: no linear layer has the pattern.
        InputError: with `half`, a weight is beyond float16.
    """
    layers = two_four_layers(pruned.masks)
    if not layers:
        raise GapruneError(
            "semi-structured: no linear layer of this run keeps at most 2 of every 4 weights along "
            "its inputs; prune with --pattern=2:4, or export it as sparse"
        )
    state = {name: value.detach().cpu().clone() for name, value in pruned.state.items()}
    if options.half:
        for name, value in state.items():
            state[name] = to_half(name, value) if value.is_floating_point() else value
    written: dict[str, Tensor] = {}
    facts: dict[str, Any] = {}
    for name, value in state.items():
        # Packed weights that CUDA cannot multiply would only be harder to read.
        fits = name in layers and _fits_cuda(value)
        packs = fits and value.dtype in HALVES
        written |= packed(name, value) if packs else {name: value}
        if name in layers:
            facts[name] = {
                "shape": list(value.shape),
                "groups": value.numel() // OF,
                "packed": packs,
                "sizes_fit_cuda": fits,
            }
    save_file({name: value.contiguous() for name, value in written.items()}, folder / MODEL)
    description = {
        "schema": SCHEMA,
        "pattern": f"{KEEP}:{OF}",
        "layers": facts,
        "other": [name for name in pruned.masks if name not in layers],
    }
    (folder / LAYERS).write_text(to_json(description, indent=2) + "\n", encoding="utf-8")
    check_written(load_semi_structured(folder), state)


def two_four_layers(masks: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the matrices that keep at most 2 of every 4 weights along their inputs."""
    return tuple(
        name
        for name, mask in masks.items()
        if mask.ndim == 2
        and mask.shape[1] % OF == 0
        and bool((mask.reshape(-1, OF).sum(1) <= KEEP).all())
    )


def _fits_cuda(weight: Tensor) -> bool:
    rows, columns = weight.shape
    return rows % ROWS == 0 and columns % COLUMNS == 0


def load_semi_structured(folder: str | Path) -> dict[str, Tensor]:
    """Return the unpacked state dict of an export, for the original class on any device.

    Raises:
        InputError: damaged files.
    """
    path = Path(folder)
    try:
        state = load_state(path / MODEL)
        check_recorded(path / LAYERS)
        layers: dict[str, Any] = read_object(path / LAYERS)["layers"]
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, reason(error)) from error
    # Both files describe the same layers, or one of them was replaced.
    if missing := set(layers) - set(state):
        raise _damaged(folder, f"{MODEL} lacks {min(missing)}, which {LAYERS} lists")
    return state


def _damaged(folder: str | Path, reason: str) -> InputError:
    return InputError(
        f"file: {folder} holds no complete semi-structured export ({reason}); export it again"
    )
