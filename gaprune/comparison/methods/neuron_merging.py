"""Neuron Merging: a removed channel is read as a multiple of the most similar kept one.

Kim et al., NeurIPS 2020, algorithms 1 to 3. With BatchNorm folded into its filter and bias, a
channel i computes ReLU(wᵢx + bᵢ), about s · ReLU(wⱼx + bⱼ) for s = |wᵢ| ÷ |wⱼ| and similar filters;
the difference bᵢ − s bⱼ (B in equation 8) is not corrected.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from gaprune.comparison.methods.coupled_weights import (
    ChannelPosition,
    input_columns,
    output_rows,
    positions,
)
from gaprune.models.channel_groups import ChannelGroup
from gaprune.models.target import Target
from gaprune.repair.repair_sites import norms_behind

COSINE_SHARE = 0.85  # λ: importance of the cosine distance; the rest is that of the biases
LEAST_COSINE = 0.1  # t: less similar channels are removed without being merged


@torch.no_grad()
def merged(target: Target, groups: Sequence[ChannelGroup], alive: Tensor) -> nn.Module:
    """Fold channels that are not `alive`, bool `[units]`, into the weights that read the others.

    Where several layers are added, their filters stand side by side. A channel that also passes a
    depthwise layer, or a norm that is not right behind a layer, has no rule and is only removed.

    Returns:
        A network of full size; what the removed channels hold is not defined.
    """
    model, norms = copy.deepcopy(target.model), norms_behind(target.model, target.example())
    parts = alive.split([len(group.channels) for group in groups])
    for group, is_alive in zip(groups, parts, strict=True):
        outputs, inputs = positions(group, target.device)
        folded = _filters(target.model, outputs, norms)
        if folded is None:
            continue
        mixing = _merging_matrix(*folded, is_alive.to(target.device))
        for layer, channels in inputs:
            columns = input_columns(model.get_submodule(layer))
            read = columns[channels].double()
            columns[channels] = (mixing @ read.flatten(1)).view_as(read).to(columns)
    return model


def _filters(
    model: nn.Module, outputs: Sequence[ChannelPosition], norms: Mapping[str, str]
) -> tuple[Tensor, Tensor] | None:
    """Return filters `[channels, values]` and biases `[channels]`, float64, BatchNorm folded in.

    None where a channel is not the sum of layers, each with its norm if any.
    """
    channels_of = dict(outputs)
    layers = [layer for layer in channels_of if _computes(model.get_submodule(layer))]
    explained = {*layers, *(norms.get(layer) for layer in layers)}
    if len(channels_of) < len(outputs) or not explained.issuperset(channels_of):
        return None
    filters, biases = [], torch.zeros(())
    for layer in layers:
        module, channels = model.get_submodule(layer), channels_of[layer]
        rows = output_rows(module, "weight")
        assert rows is not None
        weight = rows[channels].flatten(1).double()
        bias = weight.new_zeros(len(channels))
        if module.bias is not None:
            bias = module.get_parameter("bias")[channels].double()
        if norms.get(layer) in channels_of:
            norm = model.get_submodule(norms[layer])
            scale, shift = _affine(norm, channels_of[norms[layer]])
            weight, bias = weight * scale[:, None], bias * scale + shift
        filters.append(weight)
        biases = biases.to(bias) + bias
    return torch.cat(filters, 1), biases


def _computes(module: nn.Module) -> bool:
    """Return whether a layer mixes its input channels: no norm, activation or depthwise layer."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim > 1 and getattr(module, "groups", 1) == 1


def _affine(norm: nn.Module, channels: Tensor) -> tuple[Tensor, Tensor]:
    """Return γ ÷ σ and β − μ γ ÷ σ of a BatchNorm in evaluation mode, float64."""
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var[channels].double() + norm.eps).rsqrt()
    shift = torch.zeros_like(scale)
    if norm.affine:
        scale, shift = scale * norm.weight[channels].double(), norm.bias[channels].double()
    return scale, shift - norm.running_mean[channels].double() * scale


def _merging_matrix(filters: Tensor, biases: Tensor, alive: Tensor) -> Tensor:
    """Return by what reading weights are multiplied, float64 `[channels, channels]`.

    Row j of a kept channel holds 1 for itself, and s for every removed one that merges into it.
    """
    norms = filters.norm(dim=1).clamp_min(torch.finfo(filters.dtype).tiny)
    cosines = functional.normalize(filters, dim=1) @ functional.normalize(filters, dim=1).T
    scales = norms[:, None] / norms  # s of a removed channel (row) for a kept one (column)
    differences = (biases[:, None] / scales - biases).abs()  # |B| ÷ s
    differences = differences.masked_fill(~alive, torch.nan)
    low = differences.nan_to_num(torch.inf).amin(1, keepdim=True)
    high = differences.nan_to_num(-torch.inf).amax(1, keepdim=True)
    spread = (high - low).clamp_min(torch.finfo(filters.dtype).tiny)
    distances = COSINE_SHARE * (1 - cosines) + (1 - COSINE_SHARE) * (differences - low) / spread
    partner = distances.masked_fill(~alive, torch.inf).argmin(1)
    removed = (~alive).nonzero().flatten()
    removed = removed[cosines[removed, partner[removed]] >= LEAST_COSINE]
    mixing = torch.diag(alive.to(filters))
    mixing[partner[removed], removed] = scales[removed, partner[removed]]
    return mixing
