"""The weights of coupled channels, position by position: what a channel is made of and read by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gaprune.errors import InputError
from gaprune.models.channel_groups import ChannelGroup, CoupledChannels, LayerChannel
from gaprune.models.channel_slicing import input_axis, is_transposed, num_outputs


class ChannelPosition(NamedTuple):
    """A layer, and which of its channels each coupled set of a group has there, int64 `[sets]`."""

    layer: str
    channels: Tensor


def positions(
    group: ChannelGroup, device: torch.device
) -> tuple[list[ChannelPosition], list[ChannelPosition]]:
    """Return where the channels of a group are computed, and where they are read.

    Raises:
        InputError: they are read by different layers, so they cannot stand for each other.
    """

    def layers(channels: CoupledChannels) -> list[str]:
        return [part.layer for part in (*channels.outputs, *channels.inputs)]

    if any(layers(channels) != layers(group.channels[0]) for channels in group.channels):
        raise InputError(
            f"pattern: channels of {group.layers[0]!r} are read by different layers, so they "
            "cannot be merged; add --budget=macs, which ranks them apart"
        )

    def of_side(sides: Sequence[Sequence[LayerChannel]]) -> list[ChannelPosition]:
        return [
            ChannelPosition(parts[0].layer, torch.tensor([p.channel for p in parts], device=device))
            for parts in zip(*sides, strict=True)
        ]

    return (
        of_side([channels.outputs for channels in group.channels]),
        of_side([channels.inputs for channels in group.channels]),
    )


def output_rows(module: nn.Module, name: str) -> Tensor | None:
    """Return a tensor of a layer with its output channels first, a view; None if it has none."""
    tensor: Tensor | None = getattr(module, name, None)
    # transposed convolutions store [in, out, …], except depthwise ones
    mixes = is_transposed(module) and getattr(module, "groups", 1) == 1
    axis = int(name == "weight" and mixes)
    if tensor is None or tensor.ndim <= axis or tensor.shape[axis] != num_outputs(module):
        return None
    return tensor.movedim(axis, 0)


def channel_tensors(module: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers of a layer that have output channels, as `output_rows`."""
    tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return [rows for name, _ in tensors if (rows := output_rows(module, name)) is not None]


def input_columns(module: nn.Module) -> Tensor:
    """Return the weight of a layer with its input channels first, a view."""
    return module.get_parameter("weight").movedim(input_axis(module), 0)
