"""Whole channels: what makes one and what reads it stay or go together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gaprune.masks.supermask import Layout


@dataclass(frozen=True, eq=False)
class ChannelIndices:
    """Which channels one weight makes and reads.

    Attributes:
        axes: of its outputs and of its inputs.
        units: for both, the unit of every index along that axis, int64; the number of all units
            where there is none: such an index always stays. None where the axis has no units.
    """

    axes: tuple[int, int]
    units: tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True, eq=False)
class ChannelUnits:
    """A unit for every channel; a weight stays where both channels that it joins do.

    Attributes:
        weights: the network's prunable weights.
        layout: the channels, one layer for those that are made together.
        wirings: of each weight.
    """

    weights: Layout
    layout: Layout
    wirings: tuple[ChannelIndices, ...]

    def weight_mask(self, mask: Tensor) -> Tensor:
        """See `Units`."""
        alive = self._alive(mask)
        found = torch.ones(self.weights.total, dtype=torch.bool, device=mask.device)
        outs = self.weights.split(found).values()
        for out, wiring in zip(outs, self.wirings, strict=True):
            for axis, units in zip(wiring.axes, wiring.units, strict=True):
                if units is not None:
                    out.logical_and_(_along(alive[units.to(mask.device)], out.ndim, axis))
        return found

    def unit_gradient(self, values: Tensor, mask: Tensor) -> Tensor:
        """See `Units`: a weight counts for one of its channels where the other one stays."""
        return self._sums(values, self._alive(mask))

    def unit_mean(self, values: Tensor) -> Tensor:
        """See `Units`; a weight counts for both of its channels."""
        everything = torch.ones(self.layout.total + 1, dtype=torch.bool, device=values.device)
        counts = self._sums(torch.ones_like(values), everything)
        return self._sums(values, everything) / counts

    def unread(self, mask: Tensor) -> Tensor:
        """Return the units that a flat mask of the weights leaves nobody to read.

        All that made them can go then, whatever the mask keeps of it.
        """
        read = torch.zeros(self.layout.total + 1, dtype=torch.bool)
        parts = self.weights.split(mask.cpu()).values()
        for one, wiring in zip(parts, self.wirings, strict=True):
            units = wiring.units[1]
            if units is not None:
                rest = [each for each in range(one.ndim) if each != wiring.axes[1]]
                read[units[one.any(rest) if rest else one]] = True
        return ~read[:-1]

    def _alive(self, mask: Tensor) -> Tensor:
        return torch.cat([mask, mask.new_ones(1)])  # what has no unit stays

    def _sums(self, values: Tensor, alive: Tensor) -> Tensor:
        """Return sums per unit; they are added on the CPU, where the order is always the same."""
        sums, places = [], []
        parts = self.weights.split(values).values()
        for one, wiring in zip(parts, self.wirings, strict=True):
            sides = list(zip(wiring.axes, wiring.units, strict=True))
            for (axis, units), (other, theirs) in zip(sides, reversed(sides), strict=True):
                if units is None:
                    continue
                held = one.double()
                if theirs is not None:
                    stays = alive[theirs.to(alive.device)]
                    held = held * _along(stays, one.ndim, other)
                rest = [each for each in range(one.ndim) if each != axis]
                sums.append(held.sum(rest) if rest else held)
                places.append(units)
        found = torch.zeros(self.layout.total + 1, dtype=torch.float64)
        found.index_add_(0, torch.cat(places), torch.cat(sums).cpu())
        return found[:-1].float().to(values.device)


def _along(slices: Tensor, ndim: int, axis: int) -> Tensor:
    shape = [1] * ndim
    shape[axis] = -1
    return slices.view(shape)
