"""Which channels of a network must be removed together, and which cannot be removed.

Dependencies are those of DepGraph (Fang et al. 2023): removing an output channel of a layer also
removes that channel from norms and depthwise convolutions behind it and from layers whose outputs
are added to it, and the matching input channels of the layers that read it. Channels are followed
through a forward pass (`channel_tracing`), and every group is tried: without some of its channels
the network must compute what it computes if no layer reads them. A group that fails stays whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from gaprune.errors import InputError, first_line, unknown_name
from gaprune.models.channel_labels import CONSTANT, HEAD_WIDTH
from gaprune.models.channel_slicing import ChannelRemoval, num_inputs, num_outputs
from gaprune.models.channel_tracing import ChannelTracer
from gaprune.models.channel_trial import ChannelTrial
from gaprune.models.target import private_copy


class LayerChannel(NamedTuple):
    """A channel of a layer."""

    layer: str
    channel: int


@dataclass(frozen=True)
class CoupledChannels:
    """Channels that can only be removed together, in the order of the network's layers.

    `outputs` are those of the layer that computes them, of norms and depthwise convolutions behind
    it, of other layers that are added to it; `inputs` are those of the layers that read them.
    `attributes` are elements of modules' vectors, and what their numbers of channels count.
    """

    outputs: tuple[LayerChannel, ...]
    inputs: tuple[LayerChannel, ...]
    attributes: tuple[LayerChannel, ...] = ()


@dataclass(frozen=True)
class ChannelGroup:
    """All coupled channels with outputs in the same layers, in the order of the first layer."""

    layers: tuple[str, ...]
    channels: tuple[CoupledChannels, ...] = field(repr=False)
    joined: str | None = None  # the operation that couples channels of the same layer, if any does


@dataclass(frozen=True)
class ChannelGraph:
    """The removable channels of a network, and why other output channels are fixed."""

    model: nn.Module
    groups: tuple[ChannelGroup, ...]
    fixed: dict[LayerChannel, str]

    @classmethod
    def trace(cls, model: nn.Module, example: Tensor) -> ChannelGraph:
        """Follow the channels of a network on one input `[1, ...]`; it stays unchanged.

        Raises:
            InputError: the network does not run on the example.
        """
        device = next((parameter.device for parameter in model.parameters()), example.device)
        private = private_copy(model, device)
        trial = ChannelTrial(model, example)

        def graph_of(**options: Any) -> tuple[ChannelGraph, ChannelTracer, set[LayerChannel]]:
            tracer = _traced(private, example, **options)
            graph, at_once = _untried(model, tracer)
            graph, failed = _tried(graph, trial)
            return graph, tracer, at_once | failed

        first, tracer, failed = graph_of()
        graphs, last, unfit = [first], tracer, failed
        free_factors: dict[str, int] = {}
        # where a reshape splits channels, another factor may be the one that can become smaller
        for position in range(2):
            sites = [site for site, channels in _factored(last).items() if channels & unfit]
            sites = [site for site in sites if last.num_factors[site] > position + 1]
            if not sites:
                break
            free_factors |= dict.fromkeys(sites, position)
            graph, last, unfit = graph_of(free_factors=dict(free_factors))
            graphs.append(graph)
        # a number may only happen to equal one of channels
        for factors in ([free_factors] if free_factors else []) + [{}]:
            if unfit and tracer.numbers:
                graph, _, unfit = graph_of(free_factors=factors, with_numbers=False)
                graphs.append(graph)
        return max(graphs, key=_num_removable)

    def whole_layers(self) -> dict[str, str]:
        """Return layer → why none, or how many, of its output channels cannot be removed."""
        by_layer: dict[str, dict[str, int]] = defaultdict(dict)
        for (layer, _), reason in self.fixed.items():
            by_layer[layer][reason] = by_layer[layer].get(reason, 0) + 1
        whole = {}
        for layer, counts in by_layer.items():
            total, reason = (
                num_outputs(self.model.get_submodule(layer)),
                max(counts, key=counts.__getitem__),
            )
            fixed = sum(counts.values())
            whole[layer] = reason if fixed == total else f"{fixed} of {total} channels: {reason}"
        return whole

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
                if (reason := self.fixed.get(LayerChannel(layer, index))) is not None:
                    raise InputError(
                        f"channels: channel {index} of layer {layer!r} cannot be removed: {reason}"
                    )
                if LayerChannel(layer, index) not in coupled:
                    last = num_outputs(self.model.get_submodule(layer)) - 1
                    raise InputError(
                        f"channels: layer {layer!r} has channels 0 to {last}, got {index!r}"
                    )
                removed.append(coupled[LayerChannel(layer, index)])
        removal = _removal_of(removed)
        counts = (num_outputs, num_inputs)
        for indices_by_layer, count in zip(removal[:2], counts, strict=True):
            for layer, indices in indices_by_layer.items():
                if len(indices) >= count(self.model.get_submodule(layer)):
                    raise InputError(
                        f"channels: nothing would be left of layer {layer!r}; keep at least one"
                    )
        return removal

    def _check_layer(self, layer: str, removable: set[str]) -> None:
        whole = self.whole_layers()
        if layer in whole and layer not in removable:
            raise InputError(
                f"channels: those of layer {layer!r} cannot be removed: {whole[layer]}"
            )
        modules = dict(self.model.named_modules())
        if layer not in modules:
            raise unknown_name("channels", layer, removable)
        if layer not in removable:
            raise InputError(
                f"channels: layer {layer!r} ({type(modules[layer]).__name__}) has none that can be "
                f"removed; layers that have: {', '.join(sorted(removable)) or 'none'}"
            )


def _traced(private: nn.Module, example: Tensor, **options: Any) -> ChannelTracer:
    tracer = ChannelTracer(private, **options)
    try:
        tracer.run(example)
    except Exception as error:  # the network's own code runs, and may raise anything
        raise InputError(
            f"model: its channels cannot be followed ({type(error).__name__}: "
            f"{first_line(error)}); channels can be removed from networks that accept the example"
        ) from error
    return tracer


def _factored(tracer: ChannelTracer) -> dict[str, set[LayerChannel]]:
    """Return site of a reshape → output channels that it splits."""
    root = tracer.labels.root
    members = _members(tracer.outputs, tracer.outputs, root)
    return {
        site: {channel for label in split for channel in members.get(root(label), ())}
        for site, split in tracer.factored.items()
    }


def _untried(model: nn.Module, tracer: ChannelTracer) -> tuple[ChannelGraph, set[LayerChannel]]:
    """Return the graph before any trial, and channels that could only be removed all at once."""
    labels, layers_in_order = tracer.labels, [name for name, _ in model.named_modules()]
    members = _members(tracer.outputs, layers_in_order, labels.root)
    readers = _members(tracer.inputs, layers_in_order, labels.root)
    attributes = _members(tracer.attributes, sorted(tracer.attributes), labels.root)
    fixed: dict[LayerChannel, str] = {}
    at_once: set[LayerChannel] = set()
    groups: dict[tuple[str, ...], list[CoupledChannels]] = defaultdict(list)
    roots: dict[tuple[str, ...], int] = {}
    for root, outputs in members.items():
        if (reason := labels.reason(root)) is not None:
            fixed.update(dict.fromkeys(outputs, reason))
            if reason == HEAD_WIDTH:
                at_once.update(outputs)
            continue
        layers = tuple(dict.fromkeys(channel.layer for channel in outputs))
        sides = (outputs, readers.get(root, ()), attributes.get(root, ()))
        groups[layers].append(CoupledChannels(*map(tuple, sides)))
        roots[layers] = root
    for layers in [layers for layers, sets in groups.items() if len(sets) == 1]:
        (single,) = groups[layers]
        if len(single.outputs) > len(layers):  # several channels of a layer, joined
            cause = labels.joined_by(roots[layers])
            reason = f"they can only be removed all at once, because of {cause}"
            fixed.update(dict.fromkeys(single.outputs, reason))
            at_once.update(single.outputs)
            del groups[layers]
    made = []
    for layers, sets in groups.items():
        is_joined = any(len(channels.outputs) > len(layers) for channels in sets)
        joined = labels.joined_by(roots[layers]) if is_joined else None
        made.append(ChannelGroup(layers, tuple(sets), joined))
    return ChannelGraph(model, tuple(made), fixed), at_once


def _num_removable(graph: ChannelGraph) -> int:
    return sum(len(channels.outputs) for group in graph.groups for channels in group.channels)


def _tried(graph: ChannelGraph, trial: ChannelTrial) -> tuple[ChannelGraph, set[LayerChannel]]:
    """Return the graph without groups that cannot be removed, and the outputs of those."""
    failures = trial.failures([group.channels for group in graph.groups], _removal_of)
    failed: dict[LayerChannel, str] = {}
    for index, problem in failures.items():
        group = graph.groups[index]
        reason = f"they are coupled by {group.joined}, and {problem}" if group.joined else problem
        failed.update((output, reason) for sets in group.channels for output in sets.outputs)
    left = (group for index, group in enumerate(graph.groups) if index not in failures)
    return ChannelGraph(graph.model, tuple(left), graph.fixed | failed), set(failed)


def _members(
    by_layer: Mapping[str, Tensor], order: Iterable[str], root: Callable[[int], int]
) -> dict[int, list[LayerChannel]]:
    """Return the channels with the same label, with their layers in this order."""
    members: dict[int, list[LayerChannel]] = defaultdict(list)
    for layer in order:
        for channel, label in enumerate(by_layer[layer].tolist() if layer in by_layer else ()):
            if label != CONSTANT:
                members[root(label)].append(LayerChannel(layer, channel))
    return members


def _removal_of(coupled: Iterable[CoupledChannels]) -> ChannelRemoval:
    """Return all channels of these sets, by layer."""
    sets = list(coupled)
    return ChannelRemoval(
        _by_layer(channel for channels in sets for channel in channels.outputs),
        _by_layer(channel for channels in sets for channel in channels.inputs),
        _by_layer(channel for channels in sets for channel in channels.attributes),
    )


def _by_layer(channels: Iterable[LayerChannel]) -> dict[str, list[int]]:
    by_layer: dict[str, set[int]] = defaultdict(set)
    for layer, channel in channels:
        by_layer[layer].add(channel)
    return {layer: sorted(indices) for layer, indices in by_layer.items()}
