"""The columns that a layer multiplies its weight with, unfolded from its inputs, and moments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from gaprune.models.layer_kinds import HF_CONV1D, is_layer

WIDE = 2048  # inputs per channel; above, covariances between blocks of inputs are taken as 0
BLOCK = 1024  # inputs per block of a wide layer
TABLE = 2**25  # most entries of a layer's covariance: 134 MB
CHUNK = 2**22  # entries of columns gathered at once: 17 MB


@dataclass(frozen=True)
class WeightShape:
    """A layer's weight as `groups` matrices.

    `size` inputs per output channel lie in `blocks` of `width`, the last padded with zeros. `axes`
    counts the axes of one patch: channels and kernel.
    """

    axes: int
    groups: int
    size: int
    blocks: int
    width: int

    @classmethod
    def of(cls, module: nn.Module) -> WeightShape:
        """Return the shape of a linear layer or convolution; see `can_unfold`."""
        weight = outputs_first(module, module.get_parameter("weight"))
        groups = module.groups if isinstance(module, _ConvNd) else 1
        size = weight[0].numel()
        if size <= WIDE:
            return cls(weight.ndim - 1, groups, size, 1, size)
        width = min(BLOCK, max(1, TABLE // (groups * size)))
        return cls(weight.ndim - 1, groups, size, math.ceil(size / width), width)

    @property
    def matrix_bytes(self) -> int:
        """Memory of the layer's Gram matrix in float32."""
        return 4 * self.groups * self.blocks * self.width**2


def can_unfold(module: nn.Module) -> bool:
    """Tell whether inputs can be unfolded: a linear layer, or a convolution, not transposed."""
    if isinstance(module, _ConvNd):
        return not module.transposed
    return isinstance(module, nn.Linear) or is_layer(module, HF_CONV1D)


def outputs_first(module: nn.Module, values: Tensor) -> Tensor:
    """Return a weight of a layer that can be unfolded, or values of its shape, with outputs first.

    This is a view. GPT-2 stores its weights as `[in, out]`; the same call turns a view back.
    """
    return values.T if is_layer(module, HF_CONV1D) else values


class InputMoments:
    """Σ x and Σ x·xᵀ of the columns that one weight multiplies, in float32.

    Columns are shifted by the mean of the first batch: inputs far from 0 keep their precision.
    """

    def __init__(self, shape: WeightShape) -> None:
        self.shape = shape
        self.count = 0
        self._shift: Tensor | None = None
        self._sums: Tensor
        self._products: Tensor

    def add(self, patches: Tensor, positions: Tensor) -> None:
        """Add the columns of `unfold` at some positions, flat indices `[columns]`."""
        shape = self.shape
        step = max(1, CHUNK // (shape.groups * shape.size))
        for part in positions.split(step):
            columns = gather_columns(patches, part, shape.axes).float()
            self._add(columns.reshape(len(part), shape.groups, shape.size))
        self.count += len(positions)

    def covariance(self) -> Tensor:
        """Return the centred covariance `[groups, blocks, width, width]`, float64."""
        mean = (self._sums / self.count).double()
        products = (self._products / self.count).double()
        products -= mean.unsqueeze(-1) * mean.unsqueeze(-2)
        return products

    def gram(self) -> Tensor:
        """Return the mean of x·xᵀ, `[groups, blocks, width, width]`, float64."""
        shape, shift = self.shape, self._shift
        assert shift is not None  # `add` has been called
        padding = shape.blocks * shape.width - shape.size
        mean = functional.pad(shift, (0, padding)).view_as(self._sums) + self._sums / self.count
        mean = mean.double()
        return self.covariance() + mean.unsqueeze(-1) * mean.unsqueeze(-2)

    def merge(self, other: InputMoments) -> None:
        """Add the moments of other inputs of the same weight."""
        if other._shift is None:
            return
        if self._shift is None:
            self._shift, self.count = other._shift, other.count
            self._sums, self._products = other._sums, other._products
            return
        shape = self.shape
        padding = shape.blocks * shape.width - shape.size
        change = functional.pad(other._shift - self._shift, (0, padding)).view_as(self._sums)
        sums = other._sums + other.count * change  # about this shift
        self._products += other._products
        self._products += other._sums.unsqueeze(-1) * change.unsqueeze(-2)
        self._products += change.unsqueeze(-1) * sums.unsqueeze(-2)
        self._sums += sums
        self.count += other.count

    def _add(self, columns: Tensor) -> None:
        shape = self.shape
        if self._shift is None:
            self._shift = columns.mean(0)
            self._sums = columns.new_zeros(shape.groups, shape.blocks, shape.width)
            self._products = columns.new_zeros(shape.groups, shape.blocks, shape.width, shape.width)
        columns -= self._shift  # in place: indexing has made a copy
        if (padding := shape.blocks * shape.width - shape.size) > 0:
            columns = functional.pad(columns, (0, padding))
        blocks = columns.view(len(columns), shape.groups * shape.blocks, shape.width)
        self._sums += blocks.sum(0).view_as(self._sums)
        cells = blocks.transpose(0, 1).contiguous()
        products = cells.transpose(1, 2) @ cells
        self._products += products.view_as(self._products)


def gather_columns(patches: Tensor, positions: Tensor, axes: int) -> Tensor:
    """Return the columns of `unfold` at flat positions `[columns, …]`; `axes` are of one patch."""
    return patches[_unravel(positions, patches.shape[:-axes])]


def spread_positions(count: int, most: int, device: torch.device) -> Tensor:
    """Return evenly spaced flat positions of `count`, at most about twice `most`."""
    step = max(1, count // max(1, most))
    # odd, or pictures of an even width would show few of their columns
    return torch.arange(0, count, step - (step % 2 == 0), device=device)


def _unravel(flat: Tensor, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """Return indices into `shape`; torch.unravel_index would import sympy, 20 MB."""
    indices: list[Tensor] = []
    for size in reversed(shape):
        indices.insert(0, flat % size)
        flat = flat // size
    return tuple(indices)


def unfold(module: nn.Module, inputs: Tensor, output: Tensor) -> Tensor | None:
    """Return what the weight multiplies: `[*positions, channels, *kernel]`, as a view if possible.

    Some convolutions pad by themselves: only the output tells how much. None if the inputs do not
    fit the layer.
    """
    if not isinstance(module, _ConvNd):
        weight: Tensor = module.weight  # type: ignore[assignment] # replaced ones are no parameters
        return inputs if inputs.shape[-1] == outputs_first(module, weight).shape[1] else None
    axes = len(module.kernel_size)
    if inputs.ndim == axes + 1:
        inputs, output = inputs[None], output[None]
    extents = [1 + d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    patches = _padded(module, inputs, output.shape[2:], extents)
    for axis, (extent, stride) in enumerate(zip(extents, module.stride, strict=True)):
        if patches.shape[2 + axis] < extent:
            return None
        patches = patches.unfold(2 + axis, extent, stride)
    for axis, dilation in enumerate(module.dilation):
        patches = patches.movedim(2 + axes + axis, 0)[::dilation].movedim(0, 2 + axes + axis)
    spatial, kernel = range(2, 2 + axes), range(2 + axes, 2 + 2 * axes)
    return patches.permute(0, *spatial, 1, *kernel)


def _padded(module: _ConvNd, inputs: Tensor, sizes: torch.Size, extents: list[int]) -> Tensor:
    """Pad inputs as the module states, then by what is missing for outputs of these sizes."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    stated = list(module._reversed_padding_repeated_twice)  # noqa: SLF001 # resolves "same" too
    padded = functional.pad(inputs, stated, mode)
    missing = [
        max(0, (count - 1) * stride + extent - size)
        for count, stride, extent, size in zip(
            sizes, module.stride, extents, padded.shape[2:], strict=True
        )
    ]
    sides = [side for lack in reversed(missing) for side in (lack // 2, lack - lack // 2)]
    return functional.pad(padded, sides) if any(missing) else padded
