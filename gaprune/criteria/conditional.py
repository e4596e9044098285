"""Channels by what the other channels cannot express: backward elimination on covariances."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gaprune.criteria.batching import batches
from gaprune.masks.units import ChannelUnits
from gaprune.models.channel_readers import ChannelReaders, find_readers, reader_samples
from gaprune.models.channel_slicing import input_axis
from gaprune.models.network import DenseNetwork
from gaprune.models.time_limit import check_time

RIDGE = 1e-3  # λ, relative to the mean variance of a layer's inputs
BATCH = 64  # inputs per forward pass


def conditional(network: DenseNetwork, calibration: Tensor | None, units: ChannelUnits) -> Tensor:
    """Score channels by the variance that kept ones cannot express, float32 `[units]`.

    Given all other inputs of a layer, channel c has the variance 1 ÷ (Σ⁻¹)_cc; times the squared
    weights that read it, this is the least loss of output variance without c (Hassibi and Stork
    1993, eq. 5, for channels), a fraction of the layer's, summed over layers. Channels of a group
    are removed one by one, the cheapest first, and Σ is conditioned on those that are left. The
    score is the rank in this order over the size of the group, in (0, 1], so that one threshold
    keeps the same fraction of every group: losses of layers with few and many inputs differ.
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
            for features, inverse, energies in tables:
                local = unit_of[layer][features] - part.start  # type: ignore[index]
                inside = (local >= 0) & (local < part.stop - part.start)
                if inside.any():
                    cells.append(_Cell(inverse.clone(), energies.clone(), local, inside))
        scores[part] = _eliminated(cells, part.stop - part.start)
    return scores.float()


@dataclass(eq=False)
class _Cell:
    """Inputs of a layer at every position: `[positions, features, features]` and what they cost."""

    inverse: Tensor  # Σ⁻¹ of the features that are left
    energies: Tensor  # Σ w² ÷ output variance, `[positions, features]`
    local: Tensor  # channel of every feature, `[features]`
    inside: Tensor  # whether it belongs to the group

    def losses(self, count: int) -> Tensor:
        """Return the loss without each of `count` channels."""
        losses = (self.energies / self.inverse.diagonal(dim1=1, dim2=2)).sum(0)
        zeros = torch.zeros(count, dtype=losses.dtype, device=losses.device)
        return zeros.index_add_(0, self.local[self.inside], losses[self.inside])

    def remove(self, channel: int) -> None:
        """Condition on the other features: Σ⁻¹ of a part is a rank-one change."""
        for index in (self.local == channel).nonzero().flatten().tolist():
            column = self.inverse[:, :, index].clone()
            pivot = column[:, index, None, None]
            self.inverse -= column[:, :, None] * column[:, None, :] / pivot
            self.inverse[:, index, index] = 1
            self.energies[:, index] = 0


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
    """Return per layer and table: features, Σ⁻¹ and energies of the dense network."""
    sums: dict[str, list[list[Tensor]]] = {layer: [] for layer in readers}

    def record(layer: str, module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:  # noqa: ANN401
        samples = reader_samples(module, args, kwargs)
        for number, table in enumerate(readers[layer]):
            values = samples[:, table].transpose(0, 1)
            ones = values.new_ones(1).double() * len(samples)
            added = [ones, values.sum(1).double(), (values.mT @ values).double()]
            known = sums[layer][number:]
            if known:
                added = [total + value for total, value in zip(known[0], added, strict=True)]
            sums[layer][number : number + 1] = [added]

    with torch.no_grad(), ExitStack() as hooks:
        for layer in readers:
            hook = network.model.get_submodule(layer).register_forward_pre_hook(
                partial(record, layer), with_kwargs=True
            )
            hooks.enter_context(hook)
        for batch in batches(network, calibration, BATCH):
            network.model(batch)
    measured: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
    for layer, tables in readers.items():
        module = network.model.get_submodule(layer)
        matrix = module.get_parameter("weight").detach().movedim(input_axis(module), 0).flatten(1)
        rows = []
        for table, (number, total, products) in zip(tables, sums[layer], strict=False):
            mean = total / number
            covariance = products / number - mean[:, :, None] * mean[:, None, :]
            variance = covariance.diagonal(dim1=1, dim2=2)
            variance += RIDGE * variance.mean() + torch.finfo(variance.dtype).tiny
            read = matrix[table].double()
            energies = read.square().sum(-1) / ((covariance @ read) * read).sum()
            rows.append((table[0], torch.linalg.inv(covariance), energies))
        measured[layer] = rows
    return measured
