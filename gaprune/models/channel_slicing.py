"""Layers without some of their channels, and layers that do not read them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import nn

from gaprune.models.sources.optional_packages import import_extra

# Attributes of torch layers that hold their number of channels.
_OUTPUTS = ("out_channels", "out_features", "num_features", "num_parameters")
_INPUTS = ("in_channels", "in_features")


class ChannelRemoval(NamedTuple):
    """Channels to remove: layer → ascending output channels, and layer → input channels."""

    outputs: dict[str, list[int]]
    inputs: dict[str, list[int]]


def num_outputs(layer: nn.Module) -> int:
    """Return the number of output channels of a layer (convolution, linear, norm, PReLU)."""
    return next(int(getattr(layer, name)) for name in _OUTPUTS if hasattr(layer, name))


def num_inputs(layer: nn.Module) -> int:
    """Return the number of input channels of a layer (convolution, linear)."""
    return next(int(getattr(layer, name)) for name in _INPUTS if hasattr(layer, name))


def torch_pruning() -> ModuleType:
    """Import torch-pruning, or raise a `GapruneError` if it is not installed."""
    package: ModuleType = import_extra("torch_pruning", "compare", "channels")
    return package


def sliced_copy(model: nn.Module, removal: ChannelRemoval, *, share: bool = False) -> nn.Module:
    """Return a smaller copy without these channels; with `share`, it shares all other tensors."""
    # layer by layer, not by torch-pruning's groups: dependencies are already resolved
    pruners = torch_pruning().DependencyGraph()
    # torch-pruning replaces tensors, it does not write into them
    shared = [*model.parameters(), *model.buffers()] if share else []
    compact = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    for layer, indices in removal.outputs.items():
        module = compact.get_submodule(layer)
        pruners.get_pruner_of_module(module).prune_out_channels(module, indices)
    for layer, indices in removal.inputs.items():
        module = compact.get_submodule(layer)
        pruners.get_pruner_of_module(module).prune_in_channels(module, indices)
    for name, parameter in model.named_parameters():  # the sliced ones are new and take gradients
        compact.get_parameter(name).requires_grad_(parameter.requires_grad)
    return compact


@torch.no_grad()
def unread_copy(
    model: nn.Module, inputs: Mapping[str, Sequence[int]], *, share: bool = False
) -> nn.Module:
    """Return a copy of the same size whose layers read zeros for these input channels.

    With `share`, it shares all other tensors.
    """
    written = {id(model.get_submodule(layer).weight) for layer in inputs}
    shared = [
        tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in written
    ]
    unread = copy.deepcopy(model, {id(tensor): tensor for tensor in shared if share})
    for layer, indices in inputs.items():
        module = unread.get_submodule(layer)
        weight = module.get_parameter("weight")
        axis = int(not is_transposed(module))
        weight.index_fill_(axis, torch.tensor(indices, device=weight.device), 0)
    return unread


@torch.no_grad()
def zeroed_copy(model: nn.Module, removal: ChannelRemoval) -> nn.Module:
    """Return a copy of the same size in which these channels are zero and are read as zero."""
    zeroed = unread_copy(model, removal.inputs)
    for layer, indices in removal.outputs.items():
        module = zeroed.get_submodule(layer)
        for name, parameter in module.named_parameters(recurse=False):
            # transposed convolutions store [in, out, …], except depthwise ones
            axis = int(name == "weight" and is_transposed(module) and module.groups == 1)
            parameter.index_fill_(axis, torch.tensor(indices, device=parameter.device), 0)
    return zeroed


def is_transposed(layer: nn.Module) -> bool:
    """Return whether a layer stores its weight as [in, out, …]."""
    return bool(getattr(layer, "transposed", False))
