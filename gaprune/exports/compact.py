"""A smaller network: channels that no kept weight reads are removed from it."""

from __future__ import annotations

import json
import operator
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from gaprune.errors import GapruneError, InputError, about
from gaprune.exports.pruned_network import ExportOptions, PrunedNetwork, check_written
from gaprune.exports.writers import MODEL
from gaprune.io.bounded_reading import parse_json
from gaprune.io.manifest import read_manifest
from gaprune.io.serialization import from_metadata, to_metadata
from gaprune.io.tensor_files import load_tensors, open_tensors
from gaprune.models.channel_removal import remove_channels
from gaprune.models.forward import free_batch, relative_difference, rounding_tolerance
from gaprune.models.input_spec import sample_inputs
from gaprune.models.onnx import export_reason
from gaprune.models.patterns import silent_channels
from gaprune.models.target import Target

PROGRAM = "model.pt2"
COMPACT = "gaprune compact"  # in the metadata of the state dict
TRACED_BATCH = 2  # torch.export takes a batch of one for a fixed size
COMPARED_BATCHES = (1, 7)


def write_compact(pruned: PrunedNetwork, folder: Path, options: ExportOptions) -> None:
    """Write the smaller network as a program of `torch.export`, and its state dict.

    At least one channel of every layer is kept.

    Raises:
        GapruneError: no channel can be removed, torch can't export the network, or its outputs
            differ from the masked network's.
    """
    target = pruned.traced_target()
    masked = pruned.network(target)
    try:
        channels = silent_channels(target, pruned.masks)
        if not channels:
            raise GapruneError(
                "compact: every channel of this run is read by weights that are kept; prune with "
                "--pattern=channel, or export it as sparse"
            )
        compact = remove_channels(masked, target.example(), channels).requires_grad_(False)
    except InputError as error:
        raise GapruneError(str(about("compact", error))) from error
    state: dict[str, Tensor] = {
        name: value.detach().cpu().clone().contiguous()
        for name, value in compact.state_dict().items()
    }
    # Cloned above, as safetensors refuses views of shared memory. With the channels, the network
    # can be built from the dense one, without loading the program.
    metadata = to_metadata(format=COMPACT, removed_channels=json.dumps(channels))
    save_file(state, folder / MODEL, metadata)
    save_program(compact, target, folder / PROGRAM)
    # Compare what a reader will load, not the network in memory.
    _compare(load_program(folder / PROGRAM), masked, target)
    check_written(load_tensors(folder / MODEL), state)


def is_compact(program: Path) -> bool:
    """Tell whether the `export.json` beside a program says that gaprune wrote it."""
    manifest = read_manifest(program.parent)
    written = {} if manifest is None or manifest.get("format") != "compact" else manifest["files"]
    return {program.name, MODEL} <= written.keys()


def removed_channels(path: Path) -> dict[str, list[int]]:
    """Return the channels that a smaller network lacks, layer → indices; {} for other files.

    Args:
        path: the state dict, which `load_state` has read.

    Raises:
        InputError: its metadata is damaged.
    """
    if path.suffix != ".safetensors":
        return {}
    try:
        with open_tensors(path) as file:
            facts = from_metadata(file.metadata())
        if facts.get("format") != COMPACT:
            return {}
        channels = parse_json(facts["removed_channels"])
        return {
            str(layer): [operator.index(channel) for channel in indices]
            for layer, indices in channels.items()
        }
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"file: the list of removed channels in {path} is damaged ({error}); export it again"
        ) from error


def save_program(model: nn.Module, target: Target, path: Path) -> None:
    """Write a network as a program of `torch.export` that takes any batch size."""
    example = sample_inputs(target.inputs, TRACED_BATCH, target.dtype).to(target.device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, (example,), dynamic_shapes=free_batch(model))
            torch.export.save(program, path)
    except Exception as error:  # tracing runs the user's code, which raises any type
        raise GapruneError(
            f"compact: torch cannot export {target.name} ({export_reason(error)}); export it as "
            "dense or sparse, which need no tracing"
        ) from error


def load_program(path: Path) -> nn.Module:
    """Load the network of a program of `torch.export`; raise InputError if it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network: nn.Module = torch.export.load(path).module()
    except Exception as error:  # damaged files raise any type
        raise InputError(
            f"file: {path} is damaged or not a program of torch.export "
            f"({type(error).__name__}); export it again"
        ) from error
    return network


@torch.no_grad()
def _compare(program: nn.Module, masked: nn.Module, target: Target) -> None:
    for count in COMPARED_BATCHES:
        inputs = sample_inputs(target.inputs, count, target.dtype).to(target.device)
        expected, outputs = masked(inputs), program(inputs)
        difference = relative_difference(outputs, expected)
        # `not <=` also catches NaN.
        if not difference <= rounding_tolerance(expected.dtype):
            raise GapruneError(
                f"compact: the smaller network differs by {difference:.1e} of the largest output "
                f"from the masked one; export {target.name} as dense or sparse"
            )
