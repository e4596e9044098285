"""Which channels of a network must be removed together, and which cannot be removed.

The dependency graph is torch-pruning's (Fang et al. 2023, "DepGraph"): removing an output channel
of a layer also removes that channel from norms and depthwise convolutions behind it and from
layers whose outputs are added to it, and the matching input channels of the layers that read it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gaprune.errors import InputError, unknown_name
from gaprune.models.sources.optional_packages import import_extra
from gaprune.models.target import trainable_copy

# Attributes of torch layers that hold their number of channels.
_OUTPUTS = ("out_channels", "out_features", "num_features", "num_parameters")
_INPUTS = ("in_channels", "in_features")


class LayerChannel(NamedTuple):
    """A channel of a layer."""

    layer: str
    channel: int


@dataclass(frozen=True)
class CoupledChannels:
    """Channels that can only be removed together, in the order of the network's layers.

    `outputs` are those of the layer that computes them, of norms and depthwise convolutions behind
    it, of other layers that are added to it; `inputs` are those of the layers that read them.
    """

    outputs: tuple[LayerChannel, ...]
    inputs: tuple[LayerChannel, ...]


@dataclass(frozen=True)
class ChannelGroup:
    """All coupled channels with outputs in the same layers, in the order of the first layer."""

    layers: tuple[str, ...]
    channels: tuple[CoupledChannels, ...] = field(repr=False)


class ChannelRemoval(NamedTuple):
    """Channels to remove: layer → ascending output channels, and layer → input channels."""

    outputs: dict[str, list[int]]
    inputs: dict[str, list[int]]


@dataclass(frozen=True)
class ChannelGraph:
    """The removable channels of a network, and layer → why its channels are fixed."""

    model: nn.Module
    groups: tuple[ChannelGroup, ...]
    fixed: dict[str, str]

    @classmethod
    def trace(cls, model: nn.Module, example: Tensor) -> ChannelGraph:
        """Trace a network on one input `[1, ...]`, or raise `InputError`; it stays unchanged."""
        coupling = _Coupling()
        fixed: dict[str, str] = {}
        for root, dependents, obstacle in _trace(model, example):
            for layer, is_output, pairs in dependents:
                for source, channel in pairs:
                    reached = LayerChannel(layer, channel)
                    coupling.add(LayerChannel(root, source), reached, output=is_output)
            if obstacle:
                fixed[root] = obstacle
        # the order of registration makes groups and channels deterministic
        order = {name: number for number, (name, _) in enumerate(model.named_modules())}
        groups: dict[tuple[str, ...], list[CoupledChannels]] = defaultdict(list)
        for channels in coupling.sets(order):
            layers = tuple(dict.fromkeys(channel.layer for channel in channels.outputs))
            obstacle = next((fixed[layer] for layer in layers if layer in fixed), None)
            if obstacle is None:
                groups[layers].append(channels)
            else:  # what is coupled to a fixed layer is fixed for the same reason
                fixed.update(dict.fromkeys(layers, obstacle))
        return cls(model, tuple(ChannelGroup(k, tuple(v)) for k, v in groups.items()), fixed)

    def removal(self, channels: Mapping[str, Sequence[int]]) -> ChannelRemoval:
        """Return all that must be removed together with `channels`: layer → output channels.

        Raises:
            InputError: an unknown layer or channel, channels that cannot be removed, or a layer
                that would be left without channels.
        """
        # any output channel of a set stands for the whole set
        coupled = {
            output: coupled
            for group in self.groups
            for coupled in group.channels
            for output in coupled.outputs
        }
        removable = {output.layer for output in coupled}
        removed = []
        for layer, indices in channels.items():
            self._check_layer(layer, removable)
            for index in indices:
                if LayerChannel(layer, index) not in coupled:
                    last = num_outputs(self.model.get_submodule(layer)) - 1
                    raise InputError(
                        f"channels: layer {layer!r} has channels 0 to {last}, got {index!r}"
                    )
                removed.append(coupled[LayerChannel(layer, index)])
        outputs = _by_layer(channel for coupled in removed for channel in coupled.outputs)
        inputs = _by_layer(channel for coupled in removed for channel in coupled.inputs)
        for indices_by_layer, count in ((outputs, num_outputs), (inputs, num_inputs)):
            for layer, indices in indices_by_layer.items():
                if len(indices) >= count(self.model.get_submodule(layer)):
                    raise InputError(
                        f"channels: nothing would be left of layer {layer!r}; keep at least one"
                    )
        return ChannelRemoval(outputs, inputs)

    def _check_layer(self, layer: str, removable: set[str]) -> None:
        if layer in self.fixed:
            raise InputError(
                f"channels: those of layer {layer!r} cannot be removed: {self.fixed[layer]}"
            )
        modules = dict(self.model.named_modules())
        if layer not in modules:
            raise unknown_name("channels", layer, removable)
        if layer not in removable:
            raise InputError(
                f"channels: layer {layer!r} ({type(modules[layer]).__name__}) has none that can be "
                f"removed; layers that have: {', '.join(sorted(removable)) or 'none'}"
            )


class _Coupling:
    """Disjoint sets of output channels, and the input channels that read them."""

    def __init__(self) -> None:
        self.parent: dict[LayerChannel, LayerChannel] = {}
        self.readers: dict[LayerChannel, set[LayerChannel]] = defaultdict(set)

    def add(self, channel: LayerChannel, other: LayerChannel, *, output: bool) -> None:
        root = self._root(channel)
        if output:  # both can only be removed together: join their sets
            self.parent[root] = self._root(other)
        else:
            self.readers[channel].add(other)

    def sets(self, order: Mapping[str, int]) -> list[CoupledChannels]:
        def position(channel: LayerChannel) -> tuple[int, int]:
            return order[channel.layer], channel.channel

        outputs: dict[LayerChannel, list[LayerChannel]] = defaultdict(list)
        inputs: dict[LayerChannel, set[LayerChannel]] = defaultdict(set)
        for channel in sorted(self.parent, key=position):
            root = self._root(channel)
            outputs[root].append(channel)
            inputs[root] |= self.readers.get(channel, set())
        return [
            CoupledChannels(tuple(members), tuple(sorted(inputs[root], key=position)))
            for root, members in outputs.items()
        ]

    def _root(self, channel: LayerChannel) -> LayerChannel:
        path = []
        while (above := self.parent.setdefault(channel, channel)) != channel:
            path.append(channel)
            channel = above
        self.parent.update(dict.fromkeys(path, channel))  # path compression
        return channel


def _by_layer(channels: Iterable[LayerChannel]) -> dict[str, list[int]]:
    by_layer: dict[str, set[int]] = defaultdict(set)
    for layer, channel in channels:
        by_layer[layer].add(channel)
    return {layer: sorted(indices) for layer, indices in by_layer.items()}


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


# A layer that the output channels of another layer reach: its name, whether the channels are
# outputs of it too (True) or inputs (False), and pairs (channel of the other layer, channel of it).
_Dependent = tuple[str, bool, tuple[tuple[int, int], ...]]


def _trace(model: nn.Module, example: Tensor) -> Iterator[tuple[str, list[_Dependent], str | None]]:
    """Yield each convolution and linear layer, its dependents, and why its channels must stay."""
    tp = torch_pruning()
    private = trainable_copy(model)  # tracing needs gradients, and registers hooks
    with torch.enable_grad():
        # torch-pruning follows autograd's graph, so the inputs must be part of it to be seen
        inputs = example.clone().requires_grad_() * 1 if example.is_floating_point() else example
        try:
            graph = tp.DependencyGraph().build_dependency(private, (inputs,), verbose=False)
        except Exception as error:  # the network's own code runs, and may raise anything
            raise InputError(
                f"model: torch-pruning cannot trace it ({type(error).__name__}: {error}); channels "
                "can be removed from networks of plain layers that accept the example"
            ) from error
    types = tp.ops.OPTYPE
    names = {module: name for name, module in private.named_modules()}
    for module, name in names.items():
        node = graph.module2node.get(module)
        if node is None or node.type not in {types.CONV, types.DEPTHWISE_CONV, types.LINEAR}:
            continue
        prune = graph.get_pruner_of_module(module).prune_out_channels
        # all channels at once: the group then lists every channel pair of every dependent layer
        items = graph.get_pruning_group(module, prune, list(range(num_outputs(module)))).items
        dependents = [
            (
                names[item.dep.target.module],
                graph.is_out_channel_pruning_fn(item.dep.handler),
                tuple(zip(item.root_idxs, item.idxs, strict=True)),
            )
            for item in items
            if item.dep.target.module in names and _has_channels(item.dep.target.module)
        ]
        obstacles = (_obstacle(graph, item.dep, inputs.grad_fn, types) for item in items)
        yield name, dependents, next(filter(None, obstacles), None)


def _has_channels(layer: nn.Module) -> bool:
    # a PReLU with one weight shares it between all channels
    return getattr(layer, "num_parameters", 0) != 1 and any(
        hasattr(layer, name) for name in _OUTPUTS
    )


def _obstacle(graph: Any, dependency: Any, inputs: object, types: Any) -> str | None:  # noqa: ANN401 - torch-pruning is untyped
    """Return why channels that reach the target of a dependency cannot be removed, or None."""
    node = dependency.target
    module = node.module
    groups = getattr(module, "groups", 1)
    # removing these would change the shape of the network's output
    if not node.outputs and graph.is_out_channel_pruning_fn(dependency.handler):
        return "they are the network's outputs"
    if inputs is not None and node.grad_fn is inputs:
        return "they are added to the network's inputs"
    # these normalise or mix over all of their channels
    if node.type in {types.LN, types.GN, types.IN, types.EMBED, types.MHA, types.LSTM}:
        return f"they pass through a {type(module).__name__}"
    if node.type in {types.PARAMETER, types.UNBIND, types.EXPAND, types.CUSTOMIZED}:
        return "they meet a parameter of no layer, or are rearranged"
    if groups > 1 and not groups == module.in_channels == module.out_channels:
        return "they pass through a grouped convolution that is not depthwise"
    return None
