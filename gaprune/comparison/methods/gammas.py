"""The scales γ of BatchNorm layers: what ranks channels, and what a penalty makes small."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gaprune.errors import InputError
from gaprune.models.channel_groups import ChannelGraph, CoupledChannels, num_inputs, num_outputs

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class ChannelRanking(NamedTuple):
    """The channels of a network by their BatchNorms.

    Attributes:
        order: those that can go one after the other, of smallest γ first; no layer is emptied.
        total: how many are ranked.
    """

    order: tuple[CoupledChannels, ...]
    total: int


def rank_channels(model: nn.Module, example: Tensor) -> ChannelRanking:
    """Rank the channels of all layers together by |γ| (Liu et al. 2017, section 3).

    Where several BatchNorms scale the same channel (depthwise blocks, residual sums), it is the
    mean of their |γ|. Ties are in the order of the layers.

    Raises:
        InputError: no BatchNorm whose channels can be removed, or the network cannot be traced.
        GapruneError: torch-pruning is not installed.
    """
    scales = gammas(model)
    ranked = []
    for group in ChannelGraph.trace(model, example).groups:
        for channel in group.channels:
            mine = [scales[layer][index] for layer, index in channel.outputs if layer in scales]
            if mine:
                ranked.append((float(torch.stack(mine).detach().abs().mean()), channel))
    if not ranked:
        raise InputError(
            "model: network slimming ranks channels by the scales of BatchNorm layers, and this "
            "network has none whose channels can be removed; use a network with BatchNorm"
        )
    ranked.sort(key=lambda one: one[0])
    return ChannelRanking(tuple(_in_turn(model, [channel for _, channel in ranked])), len(ranked))


def gammas(model: nn.Module) -> dict[str, Tensor]:
    """Return the scale of every BatchNorm that has one, by its layer."""
    return {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, NORMS) and module.affine
    }


def gamma_penalty(strength: float) -> Callable[[nn.Module], Tensor]:
    """Return λ · Σ|γ| over all BatchNorms as a function of the network (Liu et al. 2017, eq. 1)."""

    def penalty(model: nn.Module) -> Tensor:
        return strength * torch.stack([scale.abs().sum() for scale in gammas(model).values()]).sum()

    return penalty


def by_first_layer(channels: Sequence[CoupledChannels]) -> dict[str, list[int]]:
    """Return layer → ascending output channels, each by the first layer that makes it."""
    found = defaultdict(list)
    for channel in channels:
        found[channel.outputs[0].layer].append(channel.outputs[0].channel)
    return {layer: sorted(gone) for layer, gone in found.items()}


def _in_turn(model: nn.Module, channels: Sequence[CoupledChannels]) -> list[CoupledChannels]:
    """Return, in the same order, those that can go one after the other: no layer is emptied."""
    left = {}
    for channel in channels:
        for name in {place.layer for place in channel.outputs}:
            left[name, "made"] = num_outputs(model.get_submodule(name))
        for name in {place.layer for place in channel.inputs}:
            left[name, "read"] = num_inputs(model.get_submodule(name))
    order = []
    for channel in channels:
        going = Counter((place.layer, "made") for place in channel.outputs)
        going.update((place.layer, "read") for place in channel.inputs)
        if all(count < left[side] for side, count in going.items()):
            order.append(channel)
            for side, count in going.items():
                left[side] -= count
    return order
