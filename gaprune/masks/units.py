"""Structured patterns: units (channels, experts or blocks) that are scored and removed as a whole.

A search under such a pattern only handles units: scores, masks, budgets and operators refer to
`layout`. Only the evaluator and the result convert masks of units into masks of weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from gaprune.masks.supermask import Layout
from gaprune.pattern_names import CHANNEL


@dataclass(frozen=True, eq=False)
class ChannelIndices:
    """The channels that one weight produces and reads, on its output axis and its input axis.

    `units` are for both axes the unit of every index, int64; the number of all units where an index
    has none and always stays. None where the whole axis has no units.
    """

    axes: tuple[int, int]
    units: tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True, eq=False)
class ChannelUnits:
    """One unit per channel; a weight stays if both channels that it connects stay.

    `weights` and `layout` describe weights and channels: one layer for those produced together.
    Under pattern `expert` the units are experts; the output axis of their matrices counts them.
    """

    weights: Layout
    layout: Layout
    indices: tuple[ChannelIndices, ...]
    pattern: str = CHANNEL

    def weight_mask(self, mask: Tensor) -> Tensor:
        """Return the flat mask of the weights for a flat mask of the units, on its device."""
        alive = self._padded(mask)
        flat = torch.ones(self.weights.total, dtype=torch.bool, device=mask.device)
        for weight, indices in zip(self.weights.split(flat).values(), self.indices, strict=True):
            for axis, units in zip(indices.axes, indices.units, strict=True):
                if units is not None:
                    # In place: `weight` is a view of the flat mask.
                    weight.logical_and_(_along(alive[units.to(mask.device)], weight.ndim, axis))
        return flat

    def unit_gradient(self, values: Tensor, mask: Tensor) -> Tensor:
        """Return per unit the sum of `values` over the weights that it alone decides on.

        By the product rule this is the gradient of the unit scores, float32, if `values` is that of
        the weight scores. A weight counts for one of its channels only if its other channel stays.
        """
        return self._sums(values, self._padded(mask))

    def unit_mean(self, values: Tensor) -> Tensor:
        """Return the mean of `values` over all weights of every unit."""
        # One entry more than there are units: the padding that `_padded` adds to masks.
        everything = torch.ones(self.layout.total + 1, dtype=torch.bool, device=values.device)
        counts = self._sums(torch.ones_like(values), everything)
        return self._sums(values, everything) / counts

    def unread(self, mask: Tensor) -> Tensor:
        """Return the units that no kept weight reads, for a flat mask of the weights.

        Such channels can be removed whatever the mask keeps of the weights that produce them.
        """
        read = torch.zeros(self.layout.total + 1, dtype=torch.bool)
        weights = self.weights.split(mask.cpu()).values()
        for weight, indices in zip(weights, self.indices, strict=True):
            units = indices.units[1]
            if units is not None:
                other_axes = [axis for axis in range(weight.ndim) if axis != indices.axes[1]]
                read[units[weight.any(other_axes) if other_axes else weight]] = True
        return ~read[:-1]

    def _padded(self, mask: Tensor) -> Tensor:
        return torch.cat([mask, mask.new_ones(1)])  # an index without a unit always stays

    def _sums(self, values: Tensor, alive: Tensor) -> Tensor:
        sums, targets = [], []
        for weight, indices in zip(self.weights.split(values).values(), self.indices, strict=True):
            sides = list(zip(indices.axes, indices.units, strict=True))
            for (axis, units), (other_axis, others) in zip(sides, reversed(sides), strict=True):
                if units is None:
                    continue
                counted = weight.double()
                # A weight whose other channel is dropped is 0 whatever this unit does.
                if others is not None:
                    stays = alive[others.to(alive.device)]
                    counted = counted * _along(stays, weight.ndim, other_axis)
                summed_axes = [index for index in range(weight.ndim) if index != axis]
                sums.append(counted.sum(summed_axes) if summed_axes else counted)
                targets.append(units)
        # On the CPU, where index_add_ adds in a fixed order: results are the same on every device.
        totals = torch.zeros(self.layout.total + 1, dtype=torch.float64)
        totals.index_add_(0, torch.cat(targets), torch.cat(sums).cpu())
        return totals[:-1].float().to(values.device)


@dataclass(frozen=True)
class BlockUnits:
    """One unit per block of `rows` outputs by `columns` inputs; blocks at the edges are smaller.

    A layer is treated as a matrix: its outputs (on the axes in `row_axes`) by everything that an
    output reads (input channels times kernel, in memory order). A vector has one column.
    """

    weights: Layout
    rows: int
    columns: int
    row_axes: tuple[tuple[int, ...], ...]

    @cached_property
    def layout(self) -> Layout:
        """Layout of the blocks."""
        shapes = tuple(
            (-(-rows // self.rows), -(-columns // self.columns)) for rows, columns in self.matrices
        )
        return replace(self.weights, shapes=shapes)

    def weight_mask(self, mask: Tensor) -> Tensor:
        """Return the flat mask of the weights for a flat mask of the blocks, on its device."""
        flat = torch.empty(self.weights.total, dtype=mask.dtype, device=mask.device)
        blocks = self.layout.split(mask).values()
        for block, weight, axes, (rows, columns) in zip(
            blocks, self.weights.split(flat).values(), self.row_axes, self.matrices, strict=True
        ):
            matrix = weight.movedim(axes, tuple(range(len(axes))))
            # Blocks at the edges are expanded to full size and cut by the slice below.
            expanded = block.repeat_interleave(self.rows, 0).repeat_interleave(self.columns, 1)
            matrix.copy_(expanded[:rows, :columns].reshape(matrix.shape))
        return flat

    def unit_gradient(self, values: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG002 - as above
        """Return per block the sum of `values`; see `ChannelUnits`. Blocks share no weight."""
        return self._sums(values)

    def unit_mean(self, values: Tensor) -> Tensor:
        """Return the mean of `values` over all weights of every block."""
        return self._sums(values) / self._sums(torch.ones_like(values))

    def _sums(self, values: Tensor) -> Tensor:
        sums = []
        for weight, axes, (rows, columns) in zip(
            self.weights.split(values).values(), self.row_axes, self.matrices, strict=True
        ):
            matrix = weight.movedim(axes, tuple(range(len(axes)))).reshape(rows, columns)
            # Zeros complete the blocks at the edges and do not change sums.
            padded = functional.pad(matrix, (0, -columns % self.columns, 0, -rows % self.rows))
            tiles = padded.unflatten(1, (-1, self.columns)).unflatten(0, (-1, self.rows))
            sums.append(tiles.sum((1, 3)).flatten())
        return torch.cat(sums)

    @cached_property
    def matrices(self) -> list[tuple[int, int]]:
        """Rows and columns of every layer, seen as a matrix."""
        sizes = []
        for shape, axes in zip(self.weights.shapes, self.row_axes, strict=True):
            rows = math.prod(shape[axis] for axis in axes)
            sizes.append((rows, math.prod(shape) // rows))
        return sizes


Units = ChannelUnits | BlockUnits


def _along(slices: Tensor, ndim: int, axis: int) -> Tensor:
    """Return a vector as a tensor of `ndim` axes that extends along `axis`."""
    shape = [1] * ndim
    shape[axis] = -1
    return slices.view(shape)
