"""Which channels go together, which have to stay, and what a smaller network computes."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gaprune.errors import InputError, unknown_name

_OUTPUTS = ("out_channels", "out_features", "num_features", "num_parameters")
_INPUTS = ("in_channels", "in_features")


class LayerChannel(NamedTuple):
    """One channel of one layer."""

    layer: str
    channel: int


@dataclass(frozen=True)
class CoupledChannels:
    """What goes together when a channel goes.

    Attributes:
        outputs: output channels, in the order of the network's layers: of the layer that makes it, of
            norms and depthwise convolutions behind it, of others that are added to it.
        inputs: input channels of the layers that read it; behind a flattening several of one layer.
    """

    outputs: tuple[LayerChannel, ...]
    inputs: tuple[LayerChannel, ...]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that the same layers make together.

    Attributes:
        layers: their names, in the order of the network.
        channels: in the order of the first layer.
    """

    layers: tuple[str, ...]
    channels: tuple[CoupledChannels, ...] = field(repr=False)


class Dependency(NamedTuple):
    """A layer that the output channels of another one reach.

    Attributes:
        layer: its name.
        makes: True where they are output channels there too, False where they are read.
        pairs: (channel of the other one, channel of this one).
    """

    layer: str
    makes: bool
    pairs: tuple[tuple[int, int], ...]


class Dependents(NamedTuple):
    """How far a layer's output channels reach, and why they must stay, or None."""

    touches: tuple[Dependency, ...]
    obstacle: str | None


class Removal(NamedTuple):
    """Channels to remove by layer, ascending: output channels, and input channels."""

    outputs: dict[str, list[int]]
    inputs: dict[str, list[int]]


@dataclass(frozen=True)
class ChannelGraph:
    """What can be removed from a network.

    Attributes:
        model: the network.
        groups: the channels that can go.
        fixed: layer → why its channels must stay.
    """

    model: nn.Module
    groups: tuple[ChannelGroup, ...]
    fixed: dict[str, str]

    @classmethod
    def of(cls, model: nn.Module, reaches: Mapping[str, Dependents]) -> ChannelGraph:
        """Join what every layer's channels reach to groups."""
        links = _DisjointSets()
        for root, reach in reaches.items():
            for layer, makes, pairs in reach.touches:
                for mine, other in pairs:
                    links.add(LayerChannel(root, mine), LayerChannel(layer, other), makes=makes)
        order = {name: place for place, (name, _) in enumerate(model.named_modules())}
        fixed = {name: reach.obstacle for name, reach in reaches.items() if reach.obstacle}
        groups: dict[tuple[str, ...], list[CoupledChannels]] = defaultdict(list)
        for channel in links.channels(order):
            layers = tuple(dict.fromkeys(place.layer for place in channel.outputs))
            obstacle = next((fixed[layer] for layer in layers if layer in fixed), None)
            if obstacle is None:
                groups[layers].append(channel)
            else:
                fixed.update(dict.fromkeys(layers, obstacle))
        found = tuple(ChannelGroup(layers, tuple(some)) for layers, some in groups.items())
        return cls(model, found, fixed)

    def plan(self, asked: Mapping[str, Sequence[int]]) -> Removal:
        """Return all that goes with these output channels.

        Raises:
            InputError: no such layer or channel, one that must stay, nothing left of a layer.
        """
        owners = {
            place: channel
            for group in self.groups
            for channel in group.channels
            for place in channel.outputs
        }
        chosen = []
        for layer, channels in asked.items():
            self._check_layer(layer, {place.layer for place in owners})
            for channel in channels:
                if LayerChannel(layer, channel) not in owners:
                    raise InputError(
                        f"channels: layer {layer!r} has channels 0 to "
                        f"{num_outputs(self.model.get_submodule(layer)) - 1}, got {channel!r}"
                    )
                chosen.append(owners[LayerChannel(layer, channel)])
        made = _by_layer(place for channel in chosen for place in channel.outputs)
        read = _by_layer(place for channel in chosen for place in channel.inputs)
        for going, count in ((made, num_outputs), (read, num_inputs)):
            for layer, gone in going.items():
                if len(gone) >= count(self.model.get_submodule(layer)):
                    raise InputError(
                        f"channels: nothing would be left of layer {layer!r}; keep at least one"
                    )
        return Removal(made, read)

    def _check_layer(self, layer: str, known: set[str]) -> None:
        if layer in self.fixed:
            raise InputError(f"channels: those of layer {layer!r} must stay: {self.fixed[layer]}")
        modules = dict(self.model.named_modules())
        if layer not in modules:
            raise unknown_name("channels", layer, known)
        if layer not in known:
            raise InputError(
                f"channels: layer {layer!r} ({type(modules[layer]).__name__}) has none that can be "
                f"removed; layers that have: {', '.join(sorted(known)) or 'none'}"
            )


class _DisjointSets:
    """Channels joined to those they must agree with (disjoint sets), and who reads them."""

    def __init__(self) -> None:
        self.parent: dict[LayerChannel, LayerChannel] = {}
        self.reads: dict[LayerChannel, set[LayerChannel]] = defaultdict(set)

    def add(self, place: LayerChannel, other: LayerChannel, *, makes: bool) -> None:
        root = self._find(place)
        if makes:
            self.parent[root] = self._find(other)
        else:
            self.reads[place].add(other)

    def channels(self, order: Mapping[str, int]) -> list[CoupledChannels]:
        """Return the disjoint sets, all in the order of the network's layers."""

        def rank(place: LayerChannel) -> tuple[int, int]:
            return order[place.layer], place.channel

        made: dict[LayerChannel, list[LayerChannel]] = defaultdict(list)
        read: dict[LayerChannel, set[LayerChannel]] = defaultdict(set)
        for place in sorted(self.parent, key=rank):
            root = self._find(place)
            made[root].append(place)
            read[root] |= self.reads.get(place, set())
        return [
            CoupledChannels(tuple(places), tuple(sorted(read[root], key=rank)))
            for root, places in made.items()
        ]

    def _find(self, place: LayerChannel) -> LayerChannel:
        path = []
        while (above := self.parent.setdefault(place, place)) != place:
            path.append(place)
            place = above
        self.parent.update(dict.fromkeys(path, place))
        return place


def _by_layer(places: Iterable[LayerChannel]) -> dict[str, list[int]]:
    found: dict[str, set[int]] = defaultdict(set)
    for layer, channel in places:
        found[layer].add(channel)
    return {layer: sorted(channels) for layer, channels in found.items()}


def num_outputs(layer: nn.Module) -> int:
    """Return how many output channels a layer has (convolution, linear, norm, PReLU)."""
    return _first_of(layer, _OUTPUTS)


def num_inputs(layer: nn.Module) -> int:
    """Return how many input channels a layer has (convolution, linear)."""
    return _first_of(layer, _INPUTS)


def has_channels(layer: nn.Module) -> bool:
    """Tell whether a layer has weights for every channel; a PReLU of one weight has not."""
    return getattr(layer, "num_parameters", 0) != 1 and any(
        hasattr(layer, attribute) for attribute in _OUTPUTS
    )


def _first_of(layer: nn.Module, attributes: Sequence[str]) -> int:
    return next(int(getattr(layer, one)) for one in attributes if hasattr(layer, one))


@torch.no_grad()
def zeroed_copy(model: nn.Module, plan: Removal) -> nn.Module:
    """Return a copy in which the channels of a plan are zero and are read as zero."""
    found = copy.deepcopy(model)
    for layer, gone in plan.outputs.items():
        module = found.get_submodule(layer)
        for name, parameter in module.named_parameters(recurse=False):
            axis = int(name == "weight" and _transposed(module) and module.groups == 1)
            parameter.index_fill_(axis, _index(gone, parameter), 0)
    for layer, gone in plan.inputs.items():
        module = found.get_submodule(layer)
        weight = module.get_parameter("weight")
        weight.index_fill_(int(not _transposed(module)), _index(gone, weight), 0)
    return found


def _transposed(layer: nn.Module) -> bool:
    return bool(getattr(layer, "transposed", False))


def _index(gone: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(gone, device=like.device)
