"""A smaller network: the channels that the masks leave nobody to read are taken out of it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gaprune.errors import GapruneError, InputError
from gaprune.export.pruned_network import PrunedNetwork
from gaprune.export.sparse_entries import ExportOptions
from gaprune.export.state_dicts import MODEL
from gaprune.io.weights import sha256_of
from gaprune.models.channel_removal import remove_channels
from gaprune.models.input_spec import sample_inputs
from gaprune.models.patterns import silent_channels
from gaprune.models.target import Target

PROGRAM = "model.pt2"
TRACED = 2  # inputs of the example: torch takes a batch of one for a fixed size
TRIED = (1, 7)  # batches that are compared
TOLERANCE = 1e-5  # of the largest output, at least of 1
ROUNDING = 8  # steps of the dtype, where they are coarser than that


def write_compact(pruned: PrunedNetwork, folder: Path, how: ExportOptions) -> None:
    """Write the smaller network as a program of `torch.export`, and its state dict.

    Raises:
        GapruneError: no channel can go, torch-pruning is not installed, torch cannot export the
            network, or the smaller one answers otherwise than the masked one.
    """
    target = pruned.target()
    masked = pruned.network(target)
    compact = compacted(pruned, target, masked)
    save_file(_state(compact), folder / MODEL, {"format": "pt"})
    save_program(compact, target, folder / PROGRAM)
    _compare(load_program(folder / PROGRAM), masked, target)
    if sha256_of(load_file(folder / MODEL)) != sha256_of(_state(compact)):
        raise GapruneError(
            "export: the file read back is not what was written; check the disk, and try again"
        )


def compacted(pruned: PrunedNetwork, target: Target, masked: nn.Module) -> nn.Module:
    """Return a copy of the masked network without the channels that nobody reads.

    At least one channel of every layer stays.

    Raises:
        GapruneError: there is none; or torch-pruning is not installed or cannot trace the network.
    """
    try:
        gone = silent_channels(target, pruned.masks)
    except InputError as error:
        raise GapruneError(f"compact: {error}") from error
    if not gone:
        raise GapruneError(
            "compact: every channel of this run is read by weights that stay; prune with --pattern "
            "channel, or export it as sparse"
        )
    try:
        compact = remove_channels(masked, target.example(), gone)
    except InputError as error:
        raise GapruneError(f"compact: {error}") from error
    return compact.requires_grad_(False)


def save_program(model: nn.Module, target: Target, path: Path) -> None:
    """Write a network as a program that takes any number of inputs.

    Raises:
        GapruneError: torch cannot export it.
    """
    example = sample_inputs(target.inputs, TRACED, target.dtype).to(target.device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                model, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
            )
            torch.export.save(program, path)
    except Exception as error:  # torch runs the user's code, and raises any type
        first = (str(error).strip().splitlines() or [""])[0]
        raise GapruneError(
            f"compact: torch cannot export {target.name} ({type(error).__name__}: {first}); export "
            "it as dense or sparse, which need no tracing"
        ) from error


def load_program(path: Path) -> nn.Module:
    """Return the network of a program.

    Raises:
        InputError: damaged, or no program.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: nn.Module = torch.export.load(path).module()
    except Exception as error:  # damaged files raise any type
        raise InputError(
            f"file: {path} is damaged or not a program of torch.export "
            f"({type(error).__name__}); export it again"
        ) from error
    return found


@torch.no_grad()
def _compare(program: nn.Module, masked: nn.Module, target: Target) -> None:
    for count in TRIED:
        inputs = sample_inputs(target.inputs, count, target.dtype).to(target.device)
        expected, found = masked(inputs), program(inputs)
        scale = max(1.0, float(expected.abs().max()))
        eps = torch.finfo(expected.dtype).eps
        off = float((found - expected).abs().max()) / scale
        if not off <= max(TOLERANCE, ROUNDING * eps):
            raise GapruneError(
                f"compact: the smaller network differs from the masked one by {off:.1e} of the "
                f"largest output; export {target.name} as dense or sparse"
            )


def _state(model: nn.Module) -> dict[str, Tensor]:
    state: dict[str, Any] = model.state_dict()
    return {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
