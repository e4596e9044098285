"""Channels by what the other channels cannot express: backward elimination on covariances."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from gaprune.criteria.batching import batches
from gaprune.criteria.layer_inputs import (
    WIDE,
    can_unfold,
    gather_columns,
    spread_positions,
    unfold,
)
from gaprune.masks.units import ChannelUnits
from gaprune.models.channel_layers import channel_axis
from gaprune.models.channel_readers import ChannelReaders, find_readers, reader_samples
from gaprune.models.channel_slicing import input_axis, num_inputs
from gaprune.models.forward import functional_call
from gaprune.models.layer_kinds import qualified_name
from gaprune.models.network import DenseNetwork
from gaprune.models.time_limit import check_time

RIDGE = 1e-3  # λ, relative to the mean variance of a layer's inputs
BATCH = 64  # inputs per forward pass
ENTRIES = 1 << 20  # of the patches of a layer and batch
SENSED = 32  # inputs on which noise is followed to the outputs
NOISE = 0.1  # its variance, of the layer's outputs
TRIED = 128  # inputs on which the outputs without half of a group's channels are compared
MORE_OUTPUTS = 4  # times as many outputs as inputs: weights are taken in a basis of their rows
LEAST = 1e-12  # loss without a channel
TIE = 1e-6  # least relative difference of scores in a group


def conditional(network: DenseNetwork, calibration: Tensor | None, units: ChannelUnits) -> Tensor:
    """Score channels by their ranks in `conditional_loss`, over the size of the group: (0, 1].

    One threshold keeps the same fraction of every group. float32 `[units]`.
    """
    scores = _scores(network, calibration, units)
    for part in units.layout.slices:
        ranks = scores[part].argsort(stable=True).argsort()
        scores[part] = (ranks + 1) / len(ranks)
    return scores.float()


def conditional_loss(
    network: DenseNetwork, calibration: Tensor | None, units: ChannelUnits
) -> Tensor:
    """Score channels by the variance that kept ones cannot express, float32 `[units]`.

    Given all other inputs of a layer, channel c has the covariance ((Σ⁻¹)_cc)⁻¹ over the kernel of
    a convolution; between the weights that read it, this is the least loss of output variance
    without c (Hassibi and Stork 1993, eq. 5, for channels), a fraction of the layer's, summed over
    layers. Channels of a group are removed one by one, the cheapest first: Σ is conditioned on
    those that are left, and their weights take over what they can express. The score is the loss
    at its removal over the multiply-adds of the weights that read the channel. The losses of
    a group are scaled to the squared change of the network's outputs without half of its channels:
    one threshold serves all groups.
    """
    return _scores(network, calibration, units, TRIED).float()


def _scores(
    network: DenseNetwork,
    calibration: Tensor | None,
    units: ChannelUnits,
    tried: int = 0,
) -> Tensor:
    readers = find_readers(network.model, units)
    reads, trial = _measured(network, calibration, readers), None
    if tried:
        trial = _Outputs.of(network.model, next(batches(network, calibration, tried)), readers)
    unit_of = {
        name.rpartition(".")[0]: indices.units[1]
        for name, indices in zip(units.weights.names, units.indices, strict=True)
    }
    scores = torch.zeros(units.layout.total, dtype=torch.float64)
    for part in units.layout.slices:
        check_time()
        cells = []
        for read in reads:
            local = unit_of[read.layer][read.table[0]] - part.start  # type: ignore[index]
            inside = (local >= 0) & (local < part.stop - part.start)
            if inside.any():
                cells.append(_Cell(read, read.inverse.clone(), read.weights.clone(), local, inside))
        scores[part] = _eliminated(cells, part.stop - part.start, trial)
    return scores


class _Read(NamedTuple):
    """The inputs of a layer at every position, and what reads them, in the dense network.

    A channel is `block` inputs, as many as the kernel of a convolution has entries.
    """

    layer: str
    table: Tensor  # of `ChannelReaders`, `[positions, channels]`
    inverse: Tensor  # Σ⁻¹, `[positions, channels, block, channels, block]`
    weights: Tensor  # times `scale`, in `basis`, `[positions, channels, block, outputs]`
    basis: Tensor | None  # orthonormal, `[positions, 1, outputs of weights, outputs]`; None: all
    scale: Tensor  # `[outputs]`
    macs: float  # of one channel

    @classmethod
    def of(
        cls,
        layer: str,
        module: nn.Module,
        table: Tensor,
        sums: Sequence[Tensor],
        noise: float,
        macs: float,
    ) -> _Read:
        """Return what a layer reads at positions `[positions, channels]`.

        Args:
            layer: its name.
            module: the layer.
            table: of `ChannelReaders`.
            sums: how many samples, Σ x and Σ x·xᵀ.
            noise: the change of the network's outputs by noise in those of the layer.
            macs: of one input.
        """
        number, total, products = sums
        mean = total / number
        covariance = products / number - mean[:, :, None] * mean[:, None, :]
        variance = covariance.diagonal(dim1=1, dim2=2)
        variance += RIDGE * variance.mean() + torch.finfo(variance.dtype).tiny
        positions, channels = table.shape
        block = len(variance[0]) // channels
        matrix = module.get_parameter("weight").detach().movedim(input_axis(module), 0).double()
        # without patches, every entry of a kernel counts as an output
        read = matrix[table].flatten(3) if block > 1 else matrix[table].flatten(2)[..., None]
        read = read.mT.contiguous()
        flat = read.view(positions, channels * block, -1)
        spread = ((covariance @ flat) * flat).sum((0, 1)).view(matrix.shape[1], -1).sum(1)
        scale = (len(spread) * spread + torch.finfo(spread.dtype).tiny).rsqrt()
        scale *= noise**0.5
        scale = scale.repeat_interleave(read.shape[-1] // len(scale))
        inverse = torch.linalg.inv(covariance).view(positions, channels, block, channels, block)
        weights, basis = read * scale, None
        if flat.shape[2] > MORE_OUTPUTS * flat.shape[1]:
            columns, factors = torch.linalg.qr(weights.view_as(flat).mT)
            weights, basis = factors.mT.reshape(*read.shape[:3], -1), columns.mT[:, None]
        return cls(layer, table, inverse, weights, basis, scale, positions * macs)

    def matrix(self, weights: Tensor) -> Tensor:
        """Return fitted weights without the scale, `[positions, channels, block, outputs]`."""
        return (weights if self.basis is None else weights @ self.basis) / self.scale


@dataclass(eq=False)
class _Cell:
    """The same for what is left."""

    dense: _Read
    inverse: Tensor
    weights: Tensor  # fitted to the dense outputs
    local: Tensor  # channel of the group of every channel, `[channels]`
    inside: Tensor  # whether it belongs to the group

    def losses(self, count: int) -> Tensor:
        """Return the loss without each of `count` channels: tr(Wᵀ ((Σ⁻¹)_cc)⁻¹ W)."""
        blocks = self.inverse.diagonal(dim1=1, dim2=3).movedim(-1, 1)
        single = blocks.shape[-1] == 1  # then `solve` is slow
        weights = self.weights
        solved = weights / blocks if single else torch.linalg.solve(blocks, weights)
        losses = (weights * solved).sum((0, 2, 3))
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


def _eliminated(cells: list[_Cell], count: int, trial: _Outputs | None) -> Tensor:
    """Return the loss at the removal of every channel per multiply-add, ascending, on the CPU.

    A `trial` without half of the channels scales all of them.
    """
    unit = 1 / sum(cell.dense.macs * float(cell.inside.sum()) for cell in cells) * count
    scores, last, total = torch.zeros(count, dtype=torch.float64), LEAST, 0.0
    for number in range(1, count + 1):
        losses = sum((cell.losses(count).cpu() for cell in cells), torch.zeros_like(scores))
        channel = int(torch.where(scores == 0, losses, torch.inf).argmin())
        last = max((1 + TIE) * last, float(losses[channel]))
        scores[channel] = last
        total += last
        for cell in cells:
            cell.remove(channel)
        if trial is not None and number == max(1, count // 2):
            unit *= (trial.change_by(cells) + LEAST) / total
    return scores * unit


def _measured(
    network: DenseNetwork, calibration: Tensor | None, readers: ChannelReaders
) -> list[_Read]:
    """Return what layers read, table by table."""
    macs: dict[str, float] = {}
    sums: dict[str, list[list[Tensor]]] = {layer: [] for layer in readers}

    def record(
        layer: str,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: Any,  # noqa: ANN401
        output: Tensor,
    ) -> None:
        count = output.numel() / output.shape[channel_axis(module, output)]
        each = count * module.get_parameter("weight").numel() / num_inputs(module)
        macs[layer] = macs.get(layer, 0) + each  # of all inputs
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
    noise = _noise_gains(network.model, batches(network, calibration, SENSED), readers)
    return [
        _Read.of(layer, network.model.get_submodule(layer), table, added, noise[layer], macs[layer])
        for layer, tables in readers.items()
        for table, added in zip(tables, sums[layer], strict=False)
    ]


class _Outputs(NamedTuple):
    """What the dense network computes."""

    model: nn.Module
    inputs: Tensor
    dense: Tensor
    variance: float
    moments: dict[str, tuple[Tensor, Tensor]]  # mean and standard deviation of layers' outputs

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module, inputs: Tensor, layers: Iterable[str]) -> _Outputs:
        """Run the network on inputs `[N, …]`."""
        moments: dict[str, tuple[Tensor, Tensor]] = {}

        def record(layer: str, module: nn.Module, _args: object, output: Tensor) -> None:
            moments[layer] = _moments(module, output)

        with ExitStack() as hooks:
            for layer in layers:
                hook = model.get_submodule(layer).register_forward_hook(partial(record, layer))
                hooks.enter_context(hook)
            dense = model(inputs)
        variance = float((dense - dense.mean(0)).square().mean()) + LEAST
        return cls(model, inputs, dense, variance, moments)

    def change(self, weights: Mapping[str, Tensor]) -> float:
        """Return the squared change of the outputs by these weights, relative to the variance."""
        outputs = functional_call(self.model, weights, (self.inputs,))
        return float((outputs - self.dense).square().mean()) / self.variance

    @torch.no_grad()
    def change_by(self, cells: Iterable[_Cell]) -> float:
        """Return the change by fitted weights; the moments of layers' outputs are repaired."""
        weights: dict[str, Tensor] = {}

        def repair(layer: str, module: nn.Module, _args: object, output: Tensor) -> Tensor:
            (mean, spread), (expected, scale) = _moments(module, output), self.moments[layer]
            repaired: Tensor = (output - mean) * (scale / (spread + LEAST)) + expected
            return repaired

        with ExitStack() as hooks:
            for read, fitted in ((cell.dense, cell.weights) for cell in cells):
                module = self.model.get_submodule(read.layer)
                name = qualified_name(read.layer, "weight")
                if name not in weights:
                    weights[name] = module.get_parameter("weight").detach().clone()
                    hook = module.register_forward_hook(partial(repair, read.layer))
                    hooks.enter_context(hook)
                matrix = weights[name].movedim(input_axis(module), 0)
                rows = read.matrix(fitted).mT.reshape(matrix[read.table].shape)
                matrix[read.table] = rows.to(matrix)
            return self.change(weights)


def _moments(module: nn.Module, output: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of every channel."""
    axis = channel_axis(module, output)
    others = [dim for dim in range(output.ndim) if dim != axis]
    return output.mean(others, keepdim=True), output.std(others, correction=0, keepdim=True)


@torch.no_grad()
def _noise_gains(
    model: nn.Module, inputs: Iterator[Tensor], layers: Iterable[str]
) -> dict[str, float]:
    """Return layer → the squared change of the network's outputs by noise in those of the layer.

    Both relative to the outputs' variances, on the first batch.
    """
    outputs, gains = _Outputs.of(model, next(inputs), ()), dict[str, float]()

    def disturb(module: nn.Module, _args: object, output: Tensor) -> Tensor:
        axis, spread = channel_axis(module, output), _moments(module, output)[1]
        # the same at every position: pooling averages other noise away, but not what is missing
        shape = [output.shape[dim] if dim in (0, axis) else 1 for dim in range(output.ndim)]
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        disturbed: Tensor = output + NOISE**0.5 * spread * noise.to(output)
        return disturbed

    for layer in layers:
        hook = model.get_submodule(layer).register_forward_hook(disturb)
        gains[layer] = outputs.change({}) / NOISE + LEAST
        hook.remove()
    return gains


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
    if not isinstance(module, _ConvNd) or not can_unfold(module) or size > WIDE:
        samples = reader_samples(module, args, kwargs)
        yield from (samples[:, table].transpose(0, 1) for table in tables)
        return
    patches = unfold(module, next(iter((*args, *kwargs.values()))), output)
    assert patches is not None  # a convolution fits its inputs
    positions = spread_positions(output.numel() // len(weight), ENTRIES // size, output.device)
    columns = gather_columns(patches, positions, weight.ndim - 1).flatten(2)
    columns = columns.float() if columns.element_size() < torch.float32.itemsize else columns
    yield from (columns[:, table[0]].flatten(1).unsqueeze(0) for table in tables)
