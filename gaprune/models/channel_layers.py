"""Layers that the tracing of channels sees as a whole: what they do with their channels."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from gaprune.models.channel_slicing import is_transposed, num_inputs, num_outputs
from gaprune.models.layer_kinds import HF_CONV1D, is_layer

# Layers whose statistics would be others without some of their channels.
NORMALISING = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
# Layers that normalise or mix all of their channels, or have no input channels.
MIXING = (
    *NORMALISING,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.Bilinear,
)

# Layers that compute each output channel from the input channel of the same index.
CHANNELWISE = (_BatchNorm, _InstanceNorm, nn.PReLU)
MIN_GROUPS = 8  # of a convolution: of fewer, too few channels could be removed


def is_traced_layer(module: nn.Module) -> bool:
    """Return whether a module is seen as a whole, not by its operations."""
    if isinstance(module, nn.PReLU):
        return module.num_parameters > 1
    layers = (_ConvNd, nn.Linear, _BatchNorm, _InstanceNorm, *MIXING)
    return isinstance(module, layers) or is_layer(module, HF_CONV1D)


def num_groups(module: nn.Module) -> int:
    """Return into how many parts a layer divides its channels, which it does not mix."""
    if isinstance(module, CHANNELWISE):
        return num_outputs(module)
    return int(getattr(module, "groups", 1))


def refusal(module: nn.Module, num_read: int) -> str | None:
    """Return why no channel that a layer reads or computes can be removed, or None."""
    is_channelwise = isinstance(module, CHANNELWISE)
    expected = num_outputs(module) if is_channelwise else num_inputs(module)
    if num_read != expected:  # a subclass with a forward of its own
        return passing_through(module)
    groups = num_groups(module)
    is_depthwise = is_channelwise or groups == num_inputs(module) == num_outputs(module)
    # transposed ones store the outputs of a group on another axis
    if groups > 1 and not is_depthwise and (groups < MIN_GROUPS or is_transposed(module)):
        return f"they pass through a grouped convolution of {groups} groups"
    return None


def channel_axis(module: nn.Module, tensor: Tensor) -> int:
    """Return the dimension of a layer's input or output along which its channels are."""
    if isinstance(module, nn.Linear) or is_layer(module, HF_CONV1D):
        return tensor.ndim - 1
    if isinstance(module, _ConvNd):  # a batch may be missing
        return tensor.ndim - 1 - len(module.kernel_size)
    return min(1, tensor.ndim - 1)


def passing_through(module: nn.Module) -> str:
    """Return why channels stay that a layer mixes or computes in a way of its own."""
    does = ", which normalises over all of them" if isinstance(module, NORMALISING) else ""
    return f"they pass through a {type(module).__name__}{does}"
