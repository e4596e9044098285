"""What weights, blocks or channels of a network cost in multiply-adds, counted on one input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gaprune.errors import GapruneError, InputError
from gaprune.masks.mac_budget import Factor, MacCost, MacTerm
from gaprune.masks.units import BlockUnits, ChannelIndices, ChannelUnits, Units
from gaprune.models.layer_kinds import weight_axes
from gaprune.models.macs import macs_by_weight
from gaprune.models.target import Target


@dataclass(frozen=True)
class MacCounts:
    """The multiply-adds of a dense network for one input: in total, and by prunable weight."""

    total: int
    by_weight: dict[str, int]

    @classmethod
    def of(cls, target: Target) -> MacCounts:
        """Count the multiply-adds of a target, once per target."""
        if target not in _counts:
            parameters = {name: target.model.get_parameter(name) for name in target.layout.names}
            _counts[target] = cls(*macs_by_weight(target.model, target.example(), parameters))
        return _counts[target]


# Weak keys: a cache must not keep targets alive.
_counts: WeakKeyDictionary[Target, MacCounts] = WeakKeyDictionary()


def kept_macs(target: Target, masks: Mapping[str, Tensor]) -> int:
    """Return the multiply-adds that remain under masks, plus those without prunable weights."""
    counts = MacCounts.of(target)
    dropped = 0.0
    for name, mask in masks.items():
        if len(weight_axes(target.model, name).rows) > 1:  # tokens go to experts that are left
            mask = mask[mask.flatten(1).any(1)]  # noqa: PLW2901
        dropped += counts.by_weight[name] * int((~mask).count_nonzero()) / max(1, mask.numel())
    return round(counts.total - dropped)


def mac_cost_of(
    target: Target, units: Units | None, limit: int | None = None, step: int = 1
) -> MacCost:
    """Return the cost of the units of a pattern, or of single weights; see `MacCost`.

    The cost is an upper bound: all elements of a weight count as often as the most used one, and
    a smaller block at the edge of a layer counts as a whole block.

    Raises:
        InputError: torch counts no multiply-adds of prunable weights.
        GapruneError: the channels' prices do not add up to the dense network's.
    """
    counts = MacCounts.of(target)
    if not any(counts.by_weight.values()):
        raise InputError(
            f"budget: none of {target.name}'s prunable weights takes part in a matrix product or "
            "convolution that torch counts; use --budget=weights"
        )
    weights = target.layout
    # how often each element of a weight is multiplied: once per position of the layer's output
    uses = [
        -(-counts.by_weight[name] // prod(shape))
        for name, shape in zip(weights.names, weights.shapes, strict=True)
    ]
    if isinstance(units, ChannelUnits):
        terms = [
            _channel_term(units, indices, shape, count)
            for count, shape, indices in zip(uses, weights.shapes, units.indices, strict=True)
        ]
    else:
        sizes = [1] * len(uses)
        if isinstance(units, BlockUnits):
            sizes = [min(r, units.rows) * min(c, units.columns) for r, c in units.matrices]
        terms = [
            MacTerm(count, Factor(0, ((layer, size),)))
            for layer, (count, size) in enumerate(zip(uses, sizes, strict=True))
        ]
    # layers without prunable weights, such as attention products
    fixed = counts.total - sum(counts.by_weight.values())
    used_terms = tuple(term for term in terms if term.each)
    layout = weights if units is None else units.layout
    cost = MacCost(counts.total, fixed, used_terms, layout.sizes, limit, step)
    # uses are rounded up; wrong indices of channels would give another price
    difference = cost.macs(layout.sizes) - counts.total
    if isinstance(units, ChannelUnits) and not 0 <= difference <= sum(map(prod, weights.shapes)):
        raise GapruneError(
            f"budget: the prices of all channels add up to {counts.total + difference:,} "
            f"multiply-adds, not to the {counts.total:,} of {target.name}; use --budget=weights"
        )
    return cost


def _channel_term(
    units: ChannelUnits, indices: ChannelIndices, shape: tuple[int, ...], uses: int
) -> MacTerm:
    """Return the cost of a weight as (kept output channels) × (kept input channels) × the rest."""
    sizes = units.layout.sizes
    layer_of_unit = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    factors, rest = [], prod(shape)
    for axis, index in zip(indices.axes, indices.units, strict=True):
        if axis >= len(shape):  # a vector has no input axis
            factors.append(Factor(1))
            continue
        rest //= shape[axis]  # leaves the kernel size
        if index is None:  # no channel of this axis can be removed
            factors.append(Factor(shape[axis]))
            continue
        is_removable = index < units.layout.total
        per_layer = Counter(layer_of_unit[index[is_removable]].tolist())
        # behind a flattening, one channel unit covers several input features
        added = tuple((layer, per_layer[layer] // sizes[layer]) for layer in sorted(per_layer))
        factors.append(Factor(int((~is_removable).count_nonzero()), added))
    return MacTerm(uses * rest, *factors)
