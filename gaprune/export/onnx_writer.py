"""ONNX export of a pruned network, compared with torch in ONNX Runtime before it is kept."""

from __future__ import annotations

from pathlib import Path

import torch

from gaprune.errors import GapruneError
from gaprune.export.pruned_network import PrunedNetwork
from gaprune.export.sparse_entries import ExportOptions
from gaprune.models.onnx import FILE, compare_with_torch, save_onnx


def write_onnx(pruned: PrunedNetwork, folder: Path, how: ExportOptions) -> None:
    """Write the network with zeros in its weights; any number of inputs go in at once.

    Raises:
        GapruneError: an optional package is missing, torch cannot export the network, or ONNX
            Runtime answers otherwise than torch.
    """
    target = pruned.target()
    if target.dtype == torch.bfloat16:
        raise GapruneError(
            f"onnx: {target.name} computes in bfloat16, which ONNX Runtime cannot be shown; export "
            "it as dense or sparse, or prune it in float32"
        )
    model = pruned.network(target)
    save_onnx(model, target, folder / FILE)
    compare_with_torch(model, target, folder / FILE)
