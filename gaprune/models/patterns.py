"""What a pattern and a budget mean for one network: groups, blocks, units, and their cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gaprune.config import Settings
from gaprune.errors import InputError, unknown_name
from gaprune.masks.budget import with_layer_sparsity
from gaprune.masks.n_of_m import NOfM
from gaprune.masks.supermask import Layout
from gaprune.masks.units import BlockUnits, ChannelIndices, ChannelUnits, Units
from gaprune.models.channel_groups import ChannelGraph, ChannelGroup, CoupledChannels, LayerChannel
from gaprune.models.expert_layers import expert_units, removable_experts
from gaprune.models.layer_kinds import qualified_name, weight_axes, weight_kind
from gaprune.models.mac_cost import mac_cost_of
from gaprune.models.name_patterns import matching_parameters
from gaprune.models.target import Target
from gaprune.pattern_names import (
    BUDGETS,
    CHANNEL,
    EXPERT,
    LATENCY,
    TOLERANCE,
    WEIGHTS,
    BlockPattern,
    NMPattern,
    parse_pattern,
)

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
MAX_REASONS = 3  # in a message
# Tracing takes seconds, so graphs are kept as long as their target lives.
_graphs: WeakKeyDictionary[Target, ChannelGraph] = WeakKeyDictionary()


def check_pattern(settings: Settings) -> None:
    """Raise `InputError` unless pattern and budget fit together and fit the other settings."""
    pattern, budget, text = parse_pattern(settings.pattern), settings.budget, settings.pattern
    if budget not in BUDGETS:
        raise unknown_name("budget", budget, BUDGETS)
    # nothing of a layer is left to a search for a budget
    if budget != WEIGHTS and (pattern == EXPERT or isinstance(pattern, NMPattern)):
        raise InputError(
            f"budget: pattern {text!r} fixes how much of every layer stays, so there is no "
            f"choice left for {budget!r}; leave --budget out, or choose another pattern"
        )
    if budget == LATENCY and pattern != CHANNEL:
        raise InputError(
            "budget: latency is measured on the compact network, which only whole channels make "
            f"possible, got pattern {text!r}; add --pattern=channel, or use --budget=macs"
        )
    if budget != LATENCY and settings.budget_macs is not None:
        raise InputError(
            f"budget_macs: belongs to --budget=latency, got {budget!r}; with --budget=macs state "
            "the fraction of the MACs to remove as --sparsity"
        )
    if settings.width_multiple > 1 and (budget == WEIGHTS or pattern != CHANNEL):
        raise InputError(
            "width_multiple: rounds numbers of channels under a budget of their cost, got "
            f"pattern {text!r} and budget {budget!r}; add --pattern=channel --budget=macs, or "
            "leave it out"
        )
    if settings.layer_sparsity:
        _check_layer_sparsity(settings, pattern)
    _check_sparsities(settings, pattern)


def _check_sparsities(settings: Settings, pattern: object) -> None:
    """Raise unless the pattern and the budget permit the sparsities that a run would try."""
    if isinstance(pattern, NMPattern):
        _check_n_of_m(settings, pattern)
    elif pattern == EXPERT:
        _check_same_counts(settings, "the sparsity must give a whole number of experts")
        reason = "no other expert can express what a removed one computes"
        _refuse(settings, ("compensate",), reason, "use --pattern=channel")
    elif settings.budget == LATENCY:
        reason = "tries many budgets, but latency is measured for a single one"
        _refuse(settings, ("max_drop", "pareto"), reason, "use --budget=macs")


def _check_layer_sparsity(settings: Settings, pattern: object) -> None:
    """Raise unless every layer of the budget is a layer of the network, counted in weights."""
    reason = None
    if pattern == EXPERT or isinstance(pattern, NMPattern):
        reason = f"pattern {settings.pattern!r} already fixes the fraction of every layer"
    elif pattern == CHANNEL:
        reason = "channels of several layers are removed together"
    elif settings.budget != WEIGHTS:
        reason = f"budget {settings.budget!r} counts multiply-adds, not weights"
    elif settings.max_drop is not None or settings.pareto:
        reason = "max_drop and pareto try many budgets, which fixed layers may not leave"
    if reason is not None:
        text = ", ".join(settings.layer_sparsity or ())
        raise InputError(f"layer_sparsity: {reason}, got {text}; leave one of them out")


def _check_n_of_m(settings: Settings, pattern: NMPattern) -> None:
    text = settings.pattern
    # a limit on the drop searches for the sparsity itself
    if abs(settings.sparsity - pattern.sparsity) > TOLERANCE and settings.max_drop is None:
        raise InputError(
            f"sparsity: pattern {text!r} removes {pattern.sparsity:.6g} of the weights, got "
            f"{settings.sparsity}; leave --sparsity out, or choose another pattern"
        )
    _check_same_counts(settings, f"it always removes {pattern.sparsity:.6g} of every layer")


def _check_same_counts(settings: Settings, why: str) -> None:
    """Raise if a setting asks for layers with different fractions, or for several budgets."""
    text = settings.pattern
    if settings.scope == "global":
        raise InputError(
            f"scope: pattern {text!r} keeps the same fraction of every layer, got "
            f"{settings.scope!r}; leave --scope out"
        )
    reason = f"not with pattern {text!r}: {why}"
    _refuse(settings, ("max_drop", "pareto", "floor"), reason, "choose another pattern")


def _refuse(settings: Settings, names: Sequence[str], reason: str, remedy: str) -> None:
    """Raise if one of these settings is in use."""
    unused = {"max_drop": None, "pareto": False, "floor": 0, "compensate": False}
    for name in names:
        if getattr(settings, name) == unused[name]:
            continue
        option = name.replace("_", "-")
        raise InputError(f"{name}: {reason}; leave --{option} out, or {remedy}")


def searched_layout(target: Target, settings: Settings) -> Layout:
    """Return the layout of the scores and masks of a search: one entry per weight, or per unit.

    Raises:
        InputError: no layer of the network fits the pattern.
    """
    units = units_of(target, settings)
    layout = (target if units is None else units).layout.with_floor(settings.floor)
    if settings.budget != WEIGHTS:
        cost = mac_cost_of(target, units, settings.budget_macs, settings.width_multiple)
        return replace(layout, mac_cost=cost)
    pattern = parse_pattern(settings.pattern)
    if pattern == EXPERT:
        _check_experts(target, settings.sparsity)
    if not isinstance(pattern, NMPattern):
        return with_layer_sparsity(layout, _layer_fractions(target, settings.layer_sparsity or ()))
    axes = tuple(_group_axis(target, name, pattern.of) for name in target.layout.names)
    if not any(axis is not None for axis in axes):
        shapes = ", ".join(f"{name} {tuple(w.shape)}" for name, w in target.weights.items())
        raise InputError(
            f"pattern: {settings.pattern!r} groups the inputs of linear layers and convolutions by "
            f"{pattern.of}, and no layer's number of inputs is a multiple of it ({shapes}); use "
            "another pattern"
        )
    return replace(layout, n_of_m=NOfM(pattern.keep, pattern.of, axes))


def _check_experts(target: Target, sparsity: float) -> None:
    """Raise unless every layer keeps as many experts, and as many as a token is routed to."""
    count, least = (layer := removable_experts(target)[0]).count, layer.per_token
    keep = count - round(sparsity * count)
    odd = abs(sparsity - (1 - keep / count)) > TOLERANCE
    if odd or keep < least:
        possible = ", ".join(f"{n / count:.6g}" for n in range(1, count - least + 1)) or "none"
        rule = f"keeps {keep}" if not odd else "does not keep a whole number"
        raise InputError(
            f"sparsity: {sparsity} {rule} of the {count} experts of every layer, and each token is "
            f"routed to {least} of them; what is possible: {possible}"
        )


def _layer_fractions(target: Target, stated: Sequence[str]) -> dict[str, float]:
    """Return layer → the fraction to remove from it; the last pattern that fits decides."""
    fractions = dict(text.rpartition("=")[::2] for text in stated)
    parameters = dict(target.model.named_parameters(remove_duplicate=False))
    prunable = {id(parameters[name]): name for name in target.layout.names}
    layers: dict[str, float] = {}
    for pattern, names in matching_parameters(target.model, [*fractions], "layer_sparsity").items():
        fitting = [prunable[key] for name in names if (key := id(parameters[name])) in prunable]
        if not fitting:
            raise InputError(
                f"layer_sparsity: {pattern!r} fits {len(names)} parameters, such as {names[0]}, "
                "and none of them is prunable; name them in prune_also, or other layers here"
            )
        layers |= dict.fromkeys(fitting, float(fractions[pattern]))
    return layers


def _group_axis(target: Target, name: str, size: int) -> int | None:
    """Return the input axis of a weight if it can be split into groups of `size`, else None."""
    kind = weight_kind(target.model, name)
    if kind is None or not kind.in_groups:
        return None
    module = target.layer_of(name)
    shape = target.weights[name].shape
    axis = 0 if isinstance(module, _TRANSPOSED) else kind.inputs
    return axis if shape[axis] % size == 0 else None


def units_of(target: Target, settings: Settings) -> Units | None:
    """Return the units of a pattern, or None if every weight has a score of its own."""
    pattern = parse_pattern(settings.pattern)
    if isinstance(pattern, BlockPattern):
        rows = tuple(weight_axes(target.model, name).rows for name in target.layout.names)
        return BlockUnits(target.layout, pattern.rows, pattern.columns, rows)
    if pattern == CHANNEL:
        return channels_of(target, alike=settings.budget != WEIGHTS)
    return expert_units(target) if pattern == EXPERT else None


def fixed_scope(settings: Settings) -> str | None:
    """Return the only scope that a pattern permits, or None if it permits all."""
    pattern = parse_pattern(settings.pattern)
    return "layer" if pattern == EXPERT or isinstance(pattern, NMPattern) else None


def channels_of(target: Target, *, alike: bool = False) -> ChannelUnits:
    """Return the channels that masks of prunable weights can remove, as units.

    With `alike`, groups are split until all channels of a layer of the layout have the same cost.

    Raises:
        InputError: there are none, or the network does not run.
    """
    groups = channel_groups(target, alike=alike)
    layout = Layout(_group_names(groups), tuple((len(group.channels),) for group in groups))
    coupled = [channels for group in groups for channels in group.channels]
    outputs = {output: unit for unit, channels in enumerate(coupled) for output in channels.outputs}
    inputs = {reader: unit for unit, channels in enumerate(coupled) for reader in channels.inputs}
    indices = tuple(
        _channel_indices(target, name, outputs, inputs, layout.total)
        for name in target.layout.names
    )
    return ChannelUnits(target.layout, layout, indices)


def channel_groups(target: Target, *, alike: bool = False) -> tuple[ChannelGroup, ...]:
    """Return the channels behind the units of `channels_of`, in their order, traced once."""
    groups = _channel_graph(target).groups
    if not groups:
        reasons = Counter(whole_layers(target).values())
        why = "; ".join(reason for reason, _ in reasons.most_common(MAX_REASONS))
        raise InputError(
            f"pattern: no channel of this network can be removed ({why or 'no layer has any'}); "
            "use another pattern"
        )
    if not alike:
        return groups
    # channels with as many outputs and inputs in the same layers have the same cost
    split = []
    for group in groups:
        by_layers: dict[tuple[tuple[str, ...], ...], list[CoupledChannels]] = {}
        for channels in group.channels:
            sides = (channels.outputs, channels.inputs)
            layers = tuple(tuple(channel.layer for channel in side) for side in sides)
            by_layers.setdefault(layers, []).append(channels)
        split += [replace(group, channels=tuple(part)) for part in by_layers.values()]
    return tuple(split)


def whole_layers(target: Target) -> dict[str, str]:
    """Return layer → why none, or how many, of its channels can be removed."""
    return _channel_graph(target).whole_layers()


def _channel_graph(target: Target) -> ChannelGraph:
    """Return the channels that masks of prunable weights can remove, traced once."""
    if target not in _graphs:
        graph, is_maskable = ChannelGraph.trace(target.model, target.example()), _maskable(target)
        groups, fixed = [], dict(graph.fixed)
        for group in graph.groups:
            sets = tuple(filter(is_maskable, group.channels))
            # a single channel could never be removed: no layer may be emptied
            reason = "a layer that computes or reads them has no prunable weights of its own"
            if len(sets) == 1:
                sets, reason = (), "no layer may be emptied"
            if sets:
                groups.append(replace(group, channels=sets))
            left = (channels for channels in group.channels if channels not in sets)
            fixed.update((output, reason) for channels in left for output in channels.outputs)
        _graphs[target] = replace(graph, groups=tuple(groups), fixed=fixed)
    return _graphs[target]


def silent_channels(target: Target, masks: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Return layer → output channels that no kept weight reads; one channel of each group stays."""
    units, groups = channels_of(target), channel_groups(target)
    flat = target.layout.flatten({name: mask.cpu() for name, mask in masks.items()})
    silent: dict[str, list[int]] = {}
    for group, unread in zip(groups, units.unread(flat).split(units.layout.sizes), strict=True):
        pairs = zip(group.channels, unread.tolist(), strict=True)
        firsts = [channels.outputs[0] for channels, is_unread in pairs if is_unread]
        # if all channels of a group are unread, one must stay: no layer may be empty
        for layer, channel in firsts[1:] if len(firsts) == len(group.channels) else firsts:
            silent.setdefault(layer, []).append(channel)
    return silent


def _group_names(groups: Sequence[ChannelGroup]) -> tuple[str, ...]:
    """Name each group by its first layer and the number of further layers; number duplicates."""
    names = [
        group.layers[0] + (f" and {len(group.layers) - 1} more" if len(group.layers) > 1 else "")
        for group in groups
    ]
    uses = Counter(names)
    return tuple(
        f"{name} ({number})" if uses[name] > 1 else name for number, name in enumerate(names)
    )


def _maskable(target: Target) -> Callable[[CoupledChannels], bool]:
    """Return a function that tells whether masks of prunable weights can remove coupled channels.

    For this, every layer that computes or reads them needs prunable weights that it does not share.
    """
    modules = dict(target.model.named_modules())
    uses = Counter(id(p) for _, p in target.model.named_parameters(remove_duplicate=False))
    masked_layers = {
        name
        for name, module in modules.items()
        if qualified_name(name, "weight") in target.weights and uses[id(module.weight)] == 1
    }
    computing = {name for name, module in modules.items() if isinstance(module, _LAYERS)}

    def is_maskable(channels: CoupledChannels) -> bool:
        sources = {channel.layer for channel in channels.outputs} & computing
        return sources | {channel.layer for channel in channels.inputs} <= masked_layers

    return is_maskable


def _channel_indices(
    target: Target,
    name: str,
    outputs: Mapping[LayerChannel, int],
    inputs: Mapping[LayerChannel, int],
    no_unit: int,
) -> ChannelIndices:
    layer, _, leaf = name.rpartition(".")
    axes, shape = _axes(target, name), target.weights[name].shape
    if leaf != "weight":  # a bias or an attention projection follows its layer's weight
        return ChannelIndices(axes, (None, None))
    units: list[Tensor | None] = []
    for axis, unit_of in zip(axes, (outputs, inputs), strict=True):
        size = shape[axis] if axis < len(shape) else 0
        index = torch.tensor([unit_of.get(LayerChannel(layer, i), no_unit) for i in range(size)])
        units.append(index if size and bool((index < no_unit).any()) else None)
    return ChannelIndices(axes, (units[0], units[1]))


def _axes(target: Target, name: str) -> tuple[int, int]:
    """Return the output and input axes of a prunable weight; a vector has an output axis only."""
    kind = weight_axes(target.model, name)
    return (kind.rows[-1], kind.inputs) if target.weights[name].ndim > 1 else (0, 1)
