"""Layers without some of their channels, and layers that do not read them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gaprune.models.layer_kinds import HF_CONV1D, is_layer

# Attributes of layers that hold their number of channels; the last are those of GPT-2's Conv1D.
_OUTPUTS = ("out_channels", "out_features", "num_features", "num_parameters", "nf")
_INPUTS = ("in_channels", "in_features", "nx")


class ChannelRemoval(NamedTuple):
    """Channels to remove: layer → ascending output channels, and layer → input channels.

    `attributes` are modules' vectors, and numbers of channels that their code uses.
    """

    outputs: dict[str, list[int]]
    inputs: dict[str, list[int]]
    attributes: dict[str, list[int]]


def num_outputs(layer: nn.Module) -> int:
    """Return the number of output channels of a layer (convolution, linear, norm, PReLU)."""
    stated = next((int(getattr(layer, name)) for name in _OUTPUTS if hasattr(layer, name)), None)
    return layer.get_parameter("weight").shape[1 - input_axis(layer)] if stated is None else stated


def num_inputs(layer: nn.Module) -> int:
    """Return the number of input channels of a layer (convolution, linear)."""
    stated = next((int(getattr(layer, name)) for name in _INPUTS if hasattr(layer, name)), None)
    return layer.get_parameter("weight").shape[input_axis(layer)] if stated is None else stated


def sliced_copy(model: nn.Module, removal: ChannelRemoval, *, share: bool = False) -> nn.Module:
    """Return a smaller copy without these channels; with `share`, it shares all other tensors."""
    # slicing replaces tensors, it does not write into them
    shared = [*model.parameters(), *model.buffers()] if share else []
    compact = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    for layer, indices in removal.outputs.items():
        _slice_outputs(compact.get_submodule(layer), indices)
    for layer, indices in removal.inputs.items():
        module = compact.get_submodule(layer)
        _slice(module, "weight", input_axis(module), indices)
        _subtract(module, _INPUTS, len(indices))
    for name, indices in removal.attributes.items():
        _slice_attribute(compact, name, indices)
    return compact


def _slice_outputs(module: nn.Module, indices: Sequence[int]) -> None:
    count, groups = num_outputs(module), getattr(module, "groups", 1)
    if groups > 1:  # whole groups go, with the inputs that only they read
        _subtract(module, ("groups",), len(indices) * groups // count)
        _subtract(module, _INPUTS, len(indices) * num_inputs(module) // count)
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    for name, tensor in tensors:
        # transposed convolutions store [in, out, …], except depthwise ones
        axis = int(name == "weight" and is_transposed(module) and groups == 1)
        if tensor.ndim > axis and tensor.shape[axis] == count:  # also a subclass's own scales
            _slice(module, name, axis, indices)
    _subtract(module, _OUTPUTS, len(indices))


def _slice(module: nn.Module, name: str, axis: int, indices: Sequence[int]) -> None:
    """Replace a parameter or buffer by one without these indices."""
    tensor = getattr(module, name)
    kept = torch.ones(tensor.shape[axis], dtype=torch.bool)
    kept[list(indices)] = False
    sliced = tensor.detach().index_select(axis, kept.nonzero().flatten().to(tensor.device))
    if isinstance(tensor, nn.Parameter):
        sliced = nn.Parameter(sliced, requires_grad=tensor.requires_grad)
    setattr(module, name, sliced)


def _subtract(module: nn.Module, names: Sequence[str], count: int) -> None:
    for name in names:
        if hasattr(module, name):
            setattr(module, name, getattr(module, name) - count)


def _slice_attribute(model: nn.Module, name: str, indices: Sequence[int]) -> None:
    """Slice a vector, or lower a number of channels: `a.width`, or `a.widths[0]` of several."""
    owner, _, attribute = name.rpartition(".")
    module, (attribute, _, index) = model.get_submodule(owner), attribute.partition("[")
    value = getattr(module, attribute)
    if isinstance(value, Tensor):
        _slice(module, attribute, vector_axis(value), indices)
    elif not index:
        setattr(module, attribute, value - len(indices))
    else:
        numbers = list(value)
        numbers[int(index[:-1])] -= len(indices)
        setattr(module, attribute, type(value)(numbers))


def vector_axis(tensor: Tensor) -> int:
    """Return the only axis along which a tensor has more than one element, or -1."""
    axes = [axis for axis, size in enumerate(tensor.shape) if size > 1]
    return axes[0] if len(axes) == 1 else -1


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
        weight.index_fill_(input_axis(module), torch.tensor(indices, device=weight.device), 0)
    return unread


@torch.no_grad()
def zeroed_copy(model: nn.Module, removal: ChannelRemoval) -> nn.Module:
    """Return a copy of the same size in which these channels are zero and are read as zero."""
    zeroed = unread_copy(model, removal.inputs)
    for layer, indices in removal.outputs.items():
        module = zeroed.get_submodule(layer)
        for name, parameter in module.named_parameters(recurse=False):
            # transposed convolutions store [in, out, …], except depthwise ones
            groups = getattr(module, "groups", 1)
            axis = int(name == "weight" and is_transposed(module) and groups == 1)
            parameter.index_fill_(axis, torch.tensor(indices, device=parameter.device), 0)
    return zeroed


def input_axis(layer: nn.Module) -> int:
    """Return the axis of a weight along which the input channels are."""
    return int(not is_transposed(layer))


def is_transposed(layer: nn.Module) -> bool:
    """Return whether a layer stores its weight as [in, out, …]."""
    return getattr(layer, "transposed", False) or is_layer(layer, HF_CONV1D)
