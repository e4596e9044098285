"""What a pattern means for one network: its quota, its blocks, or its channels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import nn

from gaprune.baselines.channel_groups import Channel, ChannelGroup, Place
from gaprune.baselines.channels import removable
from gaprune.config import Settings
from gaprune.errors import InputError
from gaprune.pattern_names import (
    CHANNEL,
    TOLERANCE,
    BlockName,
    QuotaName,
    parse_pattern,
)
from gaprune.patterns import Blocks, Channels, Units, Wiring
from gaprune.quota import Quota
from gaprune.supermask import Layout
from gaprune.target import Target

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_found: WeakKeyDictionary[Target, tuple[tuple[ChannelGroup, ...], Layout]] = WeakKeyDictionary()


def check_pattern(settings: Settings) -> None:
    """Raise unless the pattern goes with the other settings.

    Raises:
        InputError: there is no such pattern, or one of the settings has no place beside it.
    """
    found = parse_pattern(settings.pattern)
    if not isinstance(found, QuotaName):
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


def searched_layout(target: Target, settings: Settings) -> Layout:
    """Return the layout that scores and masks of a search have: of weights, or of units."""
    units = units_of(target, settings)
    if units is not None:
        return units.layout.with_floor(settings.floor)
    layout = target.layout.with_floor(settings.floor)
    name = parse_pattern(settings.pattern)
    if not isinstance(name, QuotaName):
        return layout
    return replace(layout, quota=_quota(target, name, settings.pattern))


def units_of(target: Target, settings: Settings) -> Units | None:
    """Return the units of a pattern, or None where every weight has a score of its own.

    Raises:
        InputError: there are none in this network.
        GapruneError: torch-pruning is not installed.
    """
    name = parse_pattern(settings.pattern)
    if isinstance(name, BlockName):
        axes = tuple(_axes(target, one)[0] for one in target.layout.names)
        return Blocks(target.layout, name.rows, name.columns, axes)
    return channels_of(target) if name == CHANNEL else None


def fixed_scope(settings: Settings) -> str | None:
    """Return the scope that a pattern leaves, or None where it leaves all."""
    return "layer" if isinstance(parse_pattern(settings.pattern), QuotaName) else None


def channels_of(target: Target) -> Channels:
    """Return the channels of a network that can be removed whole.

    Raises:
        InputError: there are none, or the network cannot be traced.
        GapruneError: torch-pruning is not installed.
    """
    groups, layout = _channels(target)
    numbers = {
        place: unit
        for unit, channel in enumerate(one for group in groups for one in group.channels)
        for place in channel.made
    }
    reads = {
        place: unit
        for unit, channel in enumerate(one for group in groups for one in group.channels)
        for place in channel.read
    }
    wirings = tuple(
        _wiring(target, name, numbers, reads, layout.total) for name in target.layout.names
    )
    return Channels(target.layout, layout, wirings)


def channel_groups(target: Target) -> tuple[ChannelGroup, ...]:
    """Return the channels behind the units of `channels_of`, in their order."""
    return _channels(target)[0]


def _channels(target: Target) -> tuple[tuple[ChannelGroup, ...], Layout]:
    """Trace a network once: the channels that masks of its weights can take out."""
    if target not in _found:
        maskable = _maskable(target)
        groups = [
            replace(group, channels=tuple(one for one in group.channels if maskable(one)))
            for group in removable(target.model, target.example())
        ]
        groups = [group for group in groups if len(group.channels) > 1]
        if not groups:
            raise InputError(
                "pattern: no channel of this network can be removed (its channels are outputs, "
                "are added to inputs, or pass through layers that take all of them); use another "
                "pattern"
            )
        shapes = tuple((len(group.channels),) for group in groups)
        _found[target] = tuple(groups), Layout(_names(groups), shapes)
    return _found[target]


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


def _maskable(target: Target) -> Callable[[Channel], bool]:
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

    def tell(channel: Channel) -> bool:
        makers = {place.layer for place in channel.made} & making
        return makers | {place.layer for place in channel.read} <= own

    return tell


def _wiring(
    target: Target, name: str, made: dict[Place, int], read: dict[Place, int], none: int
) -> Wiring:
    layer, _, leaf = name.rpartition(".")
    axes, shape = _axes(target, name), target.weights[name].shape
    if leaf != "weight":  # a bias or a projection: silent where nothing reads it
        return Wiring(axes, (None, None))
    found = []
    for axis, units in zip(axes, (made, read), strict=True):
        size = shape[axis] if axis < len(shape) else 0
        index = torch.tensor([units.get(Place(layer, place), none) for place in range(size)])
        found.append(index if size and bool((index < none).any()) else None)
    return Wiring(axes, (found[0], found[1]))


def _axes(target: Target, name: str) -> tuple[int, int]:
    """Return the axes of outputs and inputs of a prunable weight; a vector has outputs alone."""
    module = target.model.get_submodule(name.rpartition(".")[0])
    swapped = isinstance(module, _TRANSPOSED) and module.groups == 1
    return (1, 0) if swapped and target.weights[name].ndim > 1 else (0, 1)


def _quota(target: Target, name: QuotaName, text: str) -> Quota:
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
    return Quota(name.keep, name.of, axes)


def _quota_axis(target: Target, name: str, of: int) -> int | None:
    module = target.model.get_submodule(name.rpartition(".")[0])
    if not isinstance(module, (*_LAYERS, *_TRANSPOSED)) or not name.endswith("weight"):
        return None
    axis = 0 if isinstance(module, _TRANSPOSED) else 1
    shape = target.weights[name].shape
    return axis if len(shape) > 1 and shape[axis] % of == 0 else None
