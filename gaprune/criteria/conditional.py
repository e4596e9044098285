"""Channels by what the other channels cannot express: backward elimination on covariances."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gaprune.criteria.batching import batches
from gaprune.criteria.layer_inputs import (
    WIDE,
    can_unfold,
    gather_columns,
    spread_positions,
    unfold,
)
from gaprune.masks.units import ChannelUnits
from gaprune.models.channel_readers import ChannelReaders, find_readers, reader_samples
from gaprune.models.channel_slicing import input_axis
from gaprune.models.network import DenseNetwork
from gaprune.models.time_limit import check_time

RIDGE = 1e-3  # λ, relative to the mean variance of a layer's inputs
BATCH = 64  # inputs per forward pass
ENTRIES = 1 << 20  # of the patches of a layer and batch


def conditional(network: DenseNetwork, calibration: Tensor | None, units: ChannelUnits) -> Tensor:
    """Score channels by the variance that kept ones cannot express, float32 `[units]`.

    Given all other inputs of a layer, channel c has the covariance ((Σ⁻¹)_cc)⁻¹ over the kernel of
    a convolution; between the weights that read it, this is the least loss of output variance
    without c (Hassibi and Stork 1993, eq. 5, for channels), a fraction of the layer's, summed over
    layers. Channels of a group are removed one by one, the cheapest first: Σ is conditioned on
    those that are left, and their weights take over what they can express. The score is the rank in
    this order over the size of the group, in (0, 1], so that one threshold keeps the same fraction
    of every group: losses of layers with few and many inputs differ.
    """
    readers = find_readers(network.model, units)
    layers = _measured(network, calibration, readers)
    unit_of = {
        name.rpartition(".")[0]: indices.units[1]
        for name, indices in zip(units.weights.names, units.indices, strict=True)
    }
    scores = torch.zeros(units.layout.total, dtype=torch.float64)
    for part in units.layout.slices:
        check_time()
        cells = []
        for layer, tables in layers.items():
            for channels, inverse, weights in tables:
                local = unit_of[layer][channels] - part.start  # type: ignore[index]
                inside = (local >= 0) & (local < part.stop - part.start)
                if inside.any():
                    cells.append(_Cell(inverse.clone(), weights.clone(), local, inside))
        scores[part] = _eliminated(cells, part.stop - part.start)
    return scores.float()


@dataclass(eq=False)
class _Cell:
    """The inputs of a layer at every position, and what reads them.

    A channel is `block` inputs, as many as the kernel of a convolution has entries.
    """

    inverse: Tensor  # Σ⁻¹ of the channels that are left, `[positions, channels, block] * 2`
    weights: (
        Tensor  # that read them, fitted to the outputs, `[positions, channels, block, outputs]`
    )
    local: Tensor  # channel of the group of every channel, `[channels]`
    inside: Tensor  # whether it belongs to the group

    def losses(self, count: int) -> Tensor:
        """Return the loss without each of `count` channels: tr(Wᵀ ((Σ⁻¹)_cc)⁻¹ W)."""
        blocks = self.inverse.diagonal(dim1=1, dim2=3).movedim(-1, 1)
        losses = (self.weights * torch.linalg.solve(blocks, self.weights)).sum((0, 2, 3))
        zeros = torch.zeros(count, dtype=losses.dtype, device=losses.device)
        return zeros.index_add_(0, self.local[self.inside], losses[self.inside])

    def remove(self, channel: int) -> None:
        """Condition on the other channels, and let their weights take over."""
        positions, channels, block = self.inverse.shape[:3]
        flat = self.inverse.view(positions, channels * block, channels * block)
        for index in (self.local == channel).nonzero().flatten().tolist():
            columns = self.inverse[:, :, :, index].reshape(positions, -1, block).clone()
            pivot = self.inverse[:, index, :, index]
            factors = torch.linalg.solve(pivot, columns, left=False)
            self.weights -= (factors @ self.weights[:, index]).view_as(self.weights)
            flat -= factors @ columns.mT
            self.inverse[:, index, :, index] = torch.eye(block).to(flat)
            self.weights[:, index] = 0


def _eliminated(cells: list[_Cell], count: int) -> Tensor:
    """Return the fraction of the channels that are removed up to each one, on the CPU."""
    ranks = torch.zeros(count, dtype=torch.float64)
    for number in range(1, count + 1):
        losses = sum((cell.losses(count).cpu() for cell in cells), torch.zeros_like(ranks))
        channel = int(torch.where(ranks == 0, losses, torch.inf).argmin())
        ranks[channel] = number / count
        for cell in cells:
            cell.remove(channel)
    return ranks


def _measured(
    network: DenseNetwork, calibration: Tensor | None, readers: ChannelReaders
) -> dict[str, list[tuple[Tensor, Tensor, Tensor]]]:
    """Return per layer and table: channels, Σ⁻¹ and weights of the dense network."""
    sums: dict[str, list[list[Tensor]]] = {layer: [] for layer in readers}

    def record(
        layer: str,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: Any,  # noqa: ANN401
        output: Tensor,
    ) -> None:
        for number, values in enumerate(_values(module, readers[layer], args, kwargs, output)):
            ones = values.new_ones(1).double() * values.shape[1]
            added = [ones, values.sum(1).double(), (values.mT @ values).double()]
            known = sums[layer][number:]
            if known:
                added = [total + value for total, value in zip(known[0], added, strict=True)]
            sums[layer][number : number + 1] = [added]

    with torch.no_grad(), ExitStack() as hooks:
        for layer in readers:
            hook = network.model.get_submodule(layer).register_forward_hook(
                partial(record, layer), with_kwargs=True
            )
            hooks.enter_context(hook)
        for batch in batches(network, calibration, BATCH):
            network.model(batch)
    measured: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
    for layer, tables in readers.items():
        module, rows = network.model.get_submodule(layer), []
        matrix = module.get_parameter("weight").detach().movedim(input_axis(module), 0).double()
        for table, (number, total, products) in zip(tables, sums[layer], strict=False):
            mean = total / number
            covariance = products / number - mean[:, :, None] * mean[:, None, :]
            variance = covariance.diagonal(dim1=1, dim2=2)
            variance += RIDGE * variance.mean() + torch.finfo(variance.dtype).tiny
            positions, channels = table.shape
            block = len(variance[0]) // channels
            # without patches, every entry of a kernel counts as an output
            read = matrix[table].flatten(3) if block > 1 else matrix[table].flatten(2)[..., None]
            read = read.mT.contiguous()
            flat = read.view(positions, channels * block, -1)
            read /= ((covariance @ flat) * flat).sum().sqrt()
            inverse = torch.linalg.inv(covariance)
            rows.append((table[0], inverse.view(positions, channels, block, channels, block), read))
        measured[layer] = rows
    return measured


def _values(
    module: nn.Module,
    tables: Sequence[Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    output: Tensor,
) -> Iterator[Tensor]:
    """Yield what a layer reads for every table: `[positions, samples, channels · block]`.

    A convolution reads patches, as long as their covariance is not too large.
    """
    weight = module.get_parameter("weight")
    size = weight[0].numel()
    if isinstance(module, nn.Linear) or not can_unfold(module) or size > WIDE:
        samples = reader_samples(module, args, kwargs)
        yield from (samples[:, table].transpose(0, 1) for table in tables)
        return
    patches = unfold(module, next(iter((*args, *kwargs.values()))), output)
    assert patches is not None  # a convolution fits its inputs
    positions = spread_positions(output.numel() // len(weight), ENTRIES // size, output.device)
    columns = gather_columns(patches, positions, weight.ndim - 1).flatten(2)
    columns = columns.float() if columns.element_size() < torch.float32.itemsize else columns
    yield from (columns[:, table[0]].flatten(1).unsqueeze(0) for table in tables)
