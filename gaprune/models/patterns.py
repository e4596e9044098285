"""What a pattern and a budget mean for one network: its quota, blocks or channels, their price."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gaprune.config import Settings
from gaprune.errors import InputError, unknown_name
from gaprune.masks.blocks import BlockUnits
from gaprune.masks.channels import ChannelIndices, ChannelUnits
from gaprune.masks.n_of_m import NOfM
from gaprune.masks.supermask import Layout
from gaprune.masks.units import Units
from gaprune.models.channel_groups import ChannelGroup, CoupledChannels, LayerChannel
from gaprune.models.channel_removal import removable_groups
from gaprune.models.mac_price import price_of
from gaprune.models.target import Target
from gaprune.pattern_names import (
    BUDGETS,
    CHANNEL,
    LATENCY,
    TOLERANCE,
    WEIGHTS,
    BlockPattern,
    NMPattern,
    parse_pattern,
)

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_found: WeakKeyDictionary[Target, tuple[ChannelGroup, ...]] = WeakKeyDictionary()


def check_pattern(settings: Settings) -> None:
    """Raise unless pattern and budget go with the other settings.

    Raises:
        InputError: there is no such pattern or budget, or one of the settings has no place beside
            it.
    """
    found = parse_pattern(settings.pattern)
    _check_budget(settings, found)
    if not isinstance(found, NMPattern):
        return
    name = settings.pattern
    if abs(settings.sparsity - found.sparsity) > TOLERANCE and settings.max_drop is None:
        raise InputError(
            f"sparsity: pattern {name!r} removes {found.sparsity:.6g} of the weights, got "
            f"{settings.sparsity}; leave --sparsity out, or choose another pattern"
        )
    if settings.scope == "global":
        raise InputError(
            f"scope: pattern {name!r} keeps the same part of every layer, got {settings.scope!r}; "
            "leave --scope out"
        )
    for key, used in (
        ("max_drop", settings.max_drop is not None),
        ("pareto", settings.pareto),
        ("floor", settings.floor > 0),
    ):
        if used:
            option = key.replace("_", "-")
            raise InputError(
                f"{key}: pattern {name!r} removes {found.sparsity:.6g} and nothing else; leave "
                f"--{option} out, or choose another pattern"
            )


def _check_budget(settings: Settings, pattern: str | NMPattern | BlockPattern) -> None:
    budget = settings.budget
    if budget not in BUDGETS:
        raise unknown_name("budget", budget, BUDGETS)
    if budget != WEIGHTS and isinstance(pattern, NMPattern):
        raise InputError(
            f"budget: pattern {settings.pattern!r} says how many weights of every layer stay, and "
            f"leaves {budget!r} nothing to decide; leave --budget out, or choose another pattern"
        )
    if budget == LATENCY and pattern != CHANNEL:
        raise InputError(
            "budget: latency is that of the compact network, which only whole channels make, got "
            f"pattern {settings.pattern!r}; add --pattern channel, or use --budget macs"
        )
    if budget != LATENCY and settings.budget_macs is not None:
        raise InputError(
            f"budget_macs: belongs to --budget latency, got {budget!r}; with --budget macs state "
            "the part of the multiply-adds to remove as --sparsity"
        )
    if settings.width_multiple > 1 and (budget == WEIGHTS or pattern != CHANNEL):
        raise InputError(
            "width_multiple: is a number of channels, under a budget of what they cost, got "
            f"pattern {settings.pattern!r} and budget {budget!r}; add --pattern channel --budget "
            "macs, or leave it out"
        )
    for key, used in (("max_drop", settings.max_drop is not None), ("pareto", settings.pareto)):
        if budget == LATENCY and used:
            raise InputError(
                f"{key}: tries many budgets, and latency is measured for one; leave "
                f"--{key.replace('_', '-')} out, or use --budget macs"
            )


def searched_layout(target: Target, settings: Settings) -> Layout:
    """Return the layout that scores and masks of a search have: of weights, or of units."""
    units = units_of(target, settings)
    layout = (target if units is None else units).layout.with_floor(settings.floor)
    if settings.budget != WEIGHTS:
        price = price_of(target, units, settings.budget_macs, settings.width_multiple)
        return replace(layout, mac_cost=price)
    name = parse_pattern(settings.pattern)
    if not isinstance(name, NMPattern):
        return layout
    return replace(layout, n_of_m=_quota(target, name, settings.pattern))


def units_of(target: Target, settings: Settings) -> Units | None:
    """Return the units of a pattern, or None where every weight has a score of its own.

    Raises:
        InputError: there are none in this network.
        GapruneError: torch-pruning is not installed.
    """
    name = parse_pattern(settings.pattern)
    if isinstance(name, BlockPattern):
        axes = tuple(_axes(target, one)[0] for one in target.layout.names)
        return BlockUnits(target.layout, name.rows, name.columns, axes)
    return channels_of(target, alike=settings.budget != WEIGHTS) if name == CHANNEL else None


def fixed_scope(settings: Settings) -> str | None:
    """Return the scope that a pattern leaves, or None where it leaves all."""
    return "layer" if isinstance(parse_pattern(settings.pattern), NMPattern) else None


def channels_of(target: Target, *, alike: bool = False) -> ChannelUnits:
    """Return the channels of a network that can be removed whole.

    Args:
        target: the network.
        alike: whether channels made together that others read go apart: those of one layer of the
            layout then all cost the same.

    Raises:
        InputError: there are none, or the network cannot be traced.
        GapruneError: torch-pruning is not installed.
    """
    groups = channel_groups(target, alike=alike)
    layout = Layout(_names(groups), tuple((len(group.channels),) for group in groups))
    numbers = {
        place: unit
        for unit, channel in enumerate(one for group in groups for one in group.channels)
        for place in channel.outputs
    }
    reads = {
        place: unit
        for unit, channel in enumerate(one for group in groups for one in group.channels)
        for place in channel.inputs
    }
    wirings = tuple(
        _wiring(target, name, numbers, reads, layout.total) for name in target.layout.names
    )
    return ChannelUnits(target.layout, layout, wirings)


def channel_groups(target: Target, *, alike: bool = False) -> tuple[ChannelGroup, ...]:
    """Return the channels behind the units of `channels_of`, in their order.

    Raises:
        InputError: there are none, or the network cannot be traced.
        GapruneError: torch-pruning is not installed.
    """
    if target not in _found:
        maskable = _maskable(target)
        groups = [
            replace(group, channels=tuple(one for one in group.channels if maskable(one)))
            for group in removable_groups(target.model, target.example())
        ]
        groups = [group for group in groups if len(group.channels) > 1]
        if not groups:
            raise InputError(
                "pattern: no channel of this network can be removed (its channels are outputs, "
                "are added to inputs, or pass through layers that take all of them); use another "
                "pattern"
            )
        _found[target] = tuple(groups)  # traced once
    found = _found[target]
    return tuple(one for group in found for one in _alike(group)) if alike else found


def silent_channels(target: Target, masks: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Return layer → output channels that masks leave nobody to read; one of each group stays."""
    units, groups = channels_of(target), channel_groups(target)
    flat = target.layout.flatten({name: mask.cpu() for name, mask in masks.items()})
    gone: dict[str, list[int]] = {}
    for group, quiet in zip(groups, units.unread(flat).split(units.layout.sizes), strict=True):
        flags = zip(group.channels, quiet.tolist(), strict=True)
        leaving = [one.outputs[0] for one, goes in flags if goes]
        for place in leaving[1:] if len(leaving) == len(group.channels) else leaving:
            gone.setdefault(place.layer, []).append(place.channel)
    return gone


def _alike(group: ChannelGroup) -> list[ChannelGroup]:
    """Split channels by the layers that read them."""
    found: dict[tuple[str, ...], list[CoupledChannels]] = {}
    for one in group.channels:
        found.setdefault(tuple(place.layer for place in one.inputs), []).append(one)
    return [replace(group, channels=tuple(some)) for some in found.values()]


def _names(groups: Sequence[ChannelGroup]) -> tuple[str, ...]:
    """Return a name for each group: its first layer's, and how many agree with it."""
    plain = [
        group.layers[0] + (f" and {len(group.layers) - 1} more" if len(group.layers) > 1 else "")
        for group in groups
    ]
    many = Counter(plain)
    return tuple(
        f"{name} ({number})" if many[name] > 1 else name for number, name in enumerate(plain)
    )


def _maskable(target: Target) -> Callable[[CoupledChannels], bool]:
    """Return what tells whether masks of prunable weights take out a channel.

    They do where all layers that make or read it have masks of their own: where two layers share
    their weights, a channel of one would take another channel from the other.
    """
    modules = dict(target.model.named_modules())
    uses = Counter(id(one) for _, one in target.model.named_parameters(remove_duplicate=False))
    own = {
        name
        for name, module in modules.items()
        if f"{name}.weight" in target.weights and uses[id(module.weight)] == 1
    }
    making = {name for name, one in modules.items() if isinstance(one, (*_LAYERS, *_TRANSPOSED))}

    def tell(channel: CoupledChannels) -> bool:
        makers = {place.layer for place in channel.outputs} & making
        return makers | {place.layer for place in channel.inputs} <= own

    return tell


def _wiring(
    target: Target,
    name: str,
    made: dict[LayerChannel, int],
    read: dict[LayerChannel, int],
    none: int,
) -> ChannelIndices:
    layer, _, leaf = name.rpartition(".")
    axes, shape = _axes(target, name), target.weights[name].shape
    if leaf != "weight":  # a bias or a projection: silent where nothing reads it
        return ChannelIndices(axes, (None, None))
    found = []
    for axis, units in zip(axes, (made, read), strict=True):
        size = shape[axis] if axis < len(shape) else 0
        index = torch.tensor([units.get(LayerChannel(layer, place), none) for place in range(size)])
        found.append(index if size and bool((index < none).any()) else None)
    return ChannelIndices(axes, (found[0], found[1]))


def _axes(target: Target, name: str) -> tuple[int, int]:
    """Return the axes of outputs and inputs of a prunable weight; a vector has outputs alone."""
    module = target.model.get_submodule(name.rpartition(".")[0])
    swapped = isinstance(module, _TRANSPOSED) and module.groups == 1
    return (1, 0) if swapped and target.weights[name].ndim > 1 else (0, 1)


def _quota(target: Target, name: NMPattern, text: str) -> NOfM:
    """Return the quota of a network; layers in which it has no place stay whole.

    Raises:
        InputError: it has a place in none.
    """
    axes = tuple(_quota_axis(target, one, name.of) for one in target.layout.names)
    if not any(axis is not None for axis in axes):
        sizes = ", ".join(f"{one} {tuple(target.weights[one].shape)}" for one in target.weights)
        raise InputError(
            f"pattern: {text!r} groups the inputs of linear layers and convolutions by {name.of}, "
            f"and no layer's number of inputs is a multiple of it ({sizes}); use another pattern"
        )
    return NOfM(name.keep, name.of, axes)


def _quota_axis(target: Target, name: str, of: int) -> int | None:
    module = target.model.get_submodule(name.rpartition(".")[0])
    if not isinstance(module, (*_LAYERS, *_TRANSPOSED)) or not name.endswith("weight"):
        return None
    axis = 0 if isinstance(module, _TRANSPOSED) else 1
    shape = target.weights[name].shape
    return axis if len(shape) > 1 and shape[axis] % of == 0 else None
