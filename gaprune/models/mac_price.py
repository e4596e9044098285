"""What the weights, blocks or channels of one network cost, by counting what one input takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gaprune.errors import InputError
from gaprune.masks.blocks import BlockUnits
from gaprune.masks.channels import ChannelIndices, ChannelUnits
from gaprune.masks.mac_budget import Factor, MacCost, MacTerm
from gaprune.masks.supermask import Layout
from gaprune.masks.units import Units
from gaprune.models.macs import macs_by_weight
from gaprune.models.target import Target


class MacCounts:
    """The multiply-adds of a network for one input.

    Args:
        target: the network.

    Attributes:
        total: all of them.
        by_weight: those of each prunable weight, by name; 0 for one that is not used.
    """

    def __init__(self, target: Target) -> None:
        parameters = {name: target.model.get_parameter(name) for name in target.layout.names}
        self.total, self.by_weight = macs_by_weight(target.model, target.example(), parameters)

    @classmethod
    def of(cls, target: Target) -> MacCounts:
        """Count once."""
        if target not in _counted:
            _counted[target] = cls(target)
        return _counted[target]


_counted: WeakKeyDictionary[Target, MacCounts] = WeakKeyDictionary()


def kept_macs(target: Target, masks: Mapping[str, Tensor]) -> int:
    """Return the multiply-adds with weights that masks keep, and those without prunable weights.

    Where whole channels are dropped, these are the smaller network's.
    """
    counts = MacCounts.of(target)
    dropped = sum(
        counts.by_weight[name] * int((~mask).count_nonzero()) / mask.numel()
        for name, mask in masks.items()
    )
    return round(counts.total - dropped)


def price_of(
    target: Target, units: Units | None, limit: int | None = None, step: int = 1
) -> MacCost:
    """Return what the units of a pattern cost, or single weights.

    A weight that is not used as often at one place as at another counts as where it is used most;
    a block at the edge of a layer counts as a whole one. So what stays may cost less, never more.

    Args:
        target: the network.
        units: of the pattern; None: every weight is one.
        limit: the budget, where it does not follow from a sparsity.
        step: of every layer stay so many units, or a multiple, or all.

    Raises:
        InputError: no multiply-adds of prunable weights can be counted.
    """
    counts = MacCounts.of(target)
    if not any(counts.by_weight.values()):
        raise InputError(
            f"budget: none of {target.name}'s prunable weights takes part in a matrix product or "
            "convolution that torch counts; use --budget weights"
        )
    each = {
        name: -(-counts.by_weight[name] // prod(shape))
        for name, shape in zip(target.layout.names, target.layout.shapes, strict=True)
    }
    if isinstance(units, ChannelUnits):
        found = [
            _joining(units, wiring, shape, each[name])
            for name, shape, wiring in zip(
                target.layout.names, target.layout.shapes, units.wirings, strict=True
            )
        ]
    else:
        sizes = _block_sizes(units) if isinstance(units, BlockUnits) else [1] * len(each)
        found = [
            MacTerm(positions, Factor(0, ((layer, size),)))
            for layer, (positions, size) in enumerate(zip(each.values(), sizes, strict=True))
        ]
    layout: Layout = (target if units is None else units).layout
    terms = tuple(one for one in found if one.each)
    fixed = counts.total - sum(counts.by_weight.values())
    return MacCost(counts.total, fixed, terms, layout.sizes, limit, step)


def _block_sizes(blocks: BlockUnits) -> list[int]:
    return [
        min(rows, blocks.rows) * min(columns, blocks.columns) for rows, columns in blocks.matrices
    ]


def _joining(
    units: ChannelUnits, wiring: ChannelIndices, shape: tuple[int, ...], positions: int
) -> MacTerm:
    """Return the work of a weight that joins channels to channels."""
    sides, rest = [], prod(shape)
    layers = torch.arange(len(units.layout.sizes)).repeat_interleave(
        torch.tensor(units.layout.sizes)
    )
    for axis, index in zip(wiring.axes, wiring.units, strict=True):
        if axis >= len(shape):
            sides.append(Factor(1))
            continue
        rest //= shape[axis]
        if index is None:
            sides.append(Factor(shape[axis]))
            continue
        free = index < units.layout.total
        counts = Counter(layers[index[free]].tolist())
        sizes = units.layout.sizes
        sides.append(
            Factor(
                int((~free).count_nonzero()),
                tuple((layer, counts[layer] // sizes[layer]) for layer in sorted(counts)),
            )
        )
    return MacTerm(positions * rest, *sides)
