"""Blocks of outputs by inputs: all weights of a block stay or go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from gaprune.masks.supermask import Layout


@dataclass(frozen=True)
class BlockUnits:
    """Blocks of `rows` outputs by `columns` inputs; those at the edges may be smaller.

    A layer is seen as a matrix: its outputs, and everything that one output reads (input channels
    times kernel, in the order of memory). A vector has one column.

    Attributes:
        weights: the network's prunable weights; a floor of theirs is one of the blocks.
        rows, columns: of a block.
        axes: of each layer the axis of its outputs.
    """

    weights: Layout
    rows: int
    columns: int
    axes: tuple[int, ...]

    @cached_property
    def layout(self) -> Layout:
        """The blocks, layer by layer."""
        shapes = tuple(
            (-(-rows // self.rows), -(-columns // self.columns)) for rows, columns in self.matrices
        )
        return replace(self.weights, shapes=shapes)

    def weight_mask(self, mask: Tensor) -> Tensor:
        """See `Units`."""
        found = torch.empty(self.weights.total, dtype=mask.dtype, device=mask.device)
        outs = self.weights.split(found).values()
        for one, out, axis in zip(self.layout.split(mask).values(), outs, self.axes, strict=True):
            matrix = out.movedim(axis, 0)
            wide = one.repeat_interleave(self.rows, 0).repeat_interleave(self.columns, 1)
            columns = matrix[0].numel()
            matrix.copy_(wide[: len(matrix), :columns].reshape(matrix.shape))
        return found

    def unit_gradient(self, values: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG002 - of all `Units`
        """See `Units`; blocks share no weight."""
        return self._sums(values)

    def unit_mean(self, values: Tensor) -> Tensor:
        """See `Units`."""
        return self._sums(values) / self._sums(torch.ones_like(values))

    def _sums(self, values: Tensor) -> Tensor:
        parts: Sequence[Tensor] = [
            self._tiled(one.movedim(axis, 0).flatten(1) if one.ndim > 1 else one.unsqueeze(1))
            for one, axis in zip(self.weights.split(values).values(), self.axes, strict=True)
        ]
        return torch.cat([one.reshape(-1) for one in parts])

    def _tiled(self, matrix: Tensor) -> Tensor:
        rows, columns = matrix.shape
        gain = (0, -columns % self.columns, 0, -rows % self.rows)
        padded = functional.pad(matrix, gain)
        tall, wide = padded.shape[0] // self.rows, padded.shape[1] // self.columns
        return padded.view(tall, self.rows, wide, self.columns).sum((1, 3))

    @cached_property
    def matrices(self) -> list[tuple[int, int]]:
        """Rows and columns of every layer, seen as a matrix."""
        return [
            (shape[axis], torch.Size(shape).numel() // shape[axis])
            for shape, axis in zip(self.weights.shapes, self.axes, strict=True)
        ]
