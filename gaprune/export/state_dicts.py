"""State dicts in safetensors: with zeros, with `torch.nn.utils.prune`'s names, bit-packed masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from gaprune.errors import GapruneError
from gaprune.export.pruned_network import PrunedNetwork
from gaprune.export.sparse_entries import ExportOptions
from gaprune.export.sparse_writer import sparse_bytes
from gaprune.io.mask_file import packed_bytes
from gaprune.io.sparse import load_sparse
from gaprune.io.weights import sha256_of
from gaprune.runs.directory import load_masks

MODEL, MASKS, SPARSE = "model.safetensors", "masks.safetensors", "model.sparse.safetensors"
ORIGINAL, MASK = "_orig", "_mask"  # what torch.nn.utils.prune puts behind a parameter's name


def write_dense(pruned: PrunedNetwork, folder: Path, how: ExportOptions) -> None:
    """Write the whole state dict, for the original class; zeros take room like any value."""
    save_file(_plain(pruned.state), folder / MODEL, {"format": "pt"})
    _check(load_file(folder / MODEL), pruned.state)


def write_masks(pruned: PrunedNetwork, folder: Path, how: ExportOptions) -> None:
    """Write one bit per prunable weight, and no weights."""
    about = {"target": pruned.name, "weights_sha256": str(pruned.record["weights_sha256"])}
    (folder / MASKS).write_bytes(packed_bytes(pruned.masks, **about))
    _check(load_masks(folder / MASKS), pruned.masks)


def write_prune(pruned: PrunedNetwork, folder: Path, how: ExportOptions) -> None:
    """Write the state dict of a network under `torch.nn.utils.prune`.

    The weights under the masks are the pruned ones: a run does not hold those that were dropped.
    Every name of a tied parameter has its mask.
    """
    masks = masks_by_name(pruned.state, pruned.masks)
    state: dict[str, Tensor] = {}
    for name, value in pruned.state.items():
        if name in masks:
            state[f"{name}{ORIGINAL}"] = value
            state[f"{name}{MASK}"] = masks[name].to(value.dtype)
        else:
            state[name] = value
    save_file(_plain(state), folder / MODEL, {"format": "pt"})
    _check(without_prune(load_file(folder / MODEL)), pruned.state)


def write_sparse(pruned: PrunedNetwork, folder: Path, how: ExportOptions) -> None:
    """Write a sparse file (see `gaprune.export.sparse_writer`)."""
    about = {
        "target": pruned.name,
        "weights_sha256": str(pruned.record["weights_sha256"]),
        "sparsity": str(pruned.record["sparsity"]["actual"]),
    }
    content = sparse_bytes(pruned.state, pruned.masks, how, **about)
    (folder / SPARSE).write_bytes(content)
    back = load_sparse(folder / SPARSE)
    if how.half or how.codebook is not None:  # rounded where there is a mask, nowhere else
        rounded = masks_by_name(pruned.state, pruned.masks)
        _check(
            {name: value for name, value in back.items() if name not in rounded},
            {name: value for name, value in pruned.state.items() if name not in rounded},
        )
        return
    _check(back, pruned.state)


def masks_by_name(state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return masks under every name that a tied parameter has in a state dict."""
    by_content = {sha256_of({"": state[name]}): mask for name, mask in masks.items()}
    shapes = {mask.shape for mask in masks.values()}
    found = dict(masks)
    for name, value in state.items():
        if name not in found and value.shape in shapes:
            mask = by_content.get(sha256_of({"": value}))
            if mask is not None:
                found[name] = mask
    return found


def without_prune(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict in which `…_orig` and `…_mask` are the weights they stand for."""
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        stem = name.removesuffix(ORIGINAL)
        if stem != name and f"{stem}{MASK}" in state:
            plain[stem] = value * state[f"{stem}{MASK}"]
        elif not (name.endswith(MASK) and f"{name.removesuffix(MASK)}{ORIGINAL}" in state):
            plain[name] = value
    return plain


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that share no memory, as safetensors asks."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}


def _check(back: Mapping[str, Tensor], written: Mapping[str, Tensor]) -> None:
    """Raise unless what was read is, bit for bit, what was written."""
    if sha256_of(back) != sha256_of(written):
        raise GapruneError(
            "export: the file read back is not what was written; check the disk, and try again"
        )
