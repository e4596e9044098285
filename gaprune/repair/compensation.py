"""Compensation of removed channels: their readers read a combination of kept channels instead.

On calibration inputs every channel of the dense network is expressed by the kept ones of the pruned
network (ridge regression), and this expression is multiplied into the weights that read it, as in
Neuron Merging (Kim et al. 2020) with activations in place of weights. Kept channels differ from the
dense ones too, behind other removed channels. Unlike repair, this changes prunable weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gaprune.errors import GapruneError
from gaprune.models.channel_readers import ChannelReaders, reader_samples
from gaprune.models.channel_slicing import input_axis
from gaprune.models.forward import functional_call
from gaprune.repair.dense_statistics import DenseStatistics, correct_sites
from gaprune.repair.repair_sites import STATISTICS

RIDGE = 1e-3  # λ, relative to the mean energy of the kept channels
# Dense statistics → what the readers of channels read in the dense network, on the first chunk.
_dense_samples: WeakKeyDictionary[DenseStatistics, dict[str, Tensor]] = WeakKeyDictionary()


@torch.no_grad()
def compensated_weights(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    readers: ChannelReaders,
    dense: DenseStatistics,
    ridge: float = RIDGE,
) -> dict[str, Tensor]:
    """Return the weights and biases of all layers that read removed channels, by qualified name.

    One pass of the first chunk of inputs: every layer is compensated just before it runs, so it
    sees the network as pruned and repaired so far, in which removed channels are still computed.

    `weights` are masked parameters that replace those of the dense `model`, by qualified name; a
    channel is removed where all weights that read it are 0.

    Raises:
        GapruneError: activations are not finite.
    """
    inputs, statistics = next(dense.by_chunk())
    repaired = any(rule.part == STATISTICS for rule in dense.sites.rules.values())
    expected = _samples_of(model, readers, dense)
    readings = []
    with ExitStack() as hooks:
        for layer, tables in readers.items():
            name, module = f"{layer}.weight", model.get_submodule(layer)
            nonzero = weights[name].movedim(input_axis(module), 0).flatten(1) != 0
            alive = nonzero.any(1)
            if alive.all():
                continue
            weight, bias = module.get_parameter("weight").clone(), None
            dense_bias: Tensor | None = getattr(module, "bias", None)
            # the taps of a transposed convolution do not all meet at every output
            if dense_bias is not None and f"{layer}.bias" not in weights and input_axis(module):
                bias = dense_bias.clone()
            centred = bias is not None or (dense_bias is None and repaired)
            targets = expected.get(layer)
            if targets is None:  # never called
                continue
            reading = _Reading(layer, weight, bias, tables, targets, alive, centred, ridge)
            readings.append(reading)
            hook = partial(_compensate, reading)
            hooks.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
        hooks.enter_context(correct_sites(model, dense.sites, statistics))
        replaced = {name: tensor for reading in readings for name, tensor in reading.named.items()}
        functional_call(model, replaced, (inputs,))
    for reading in readings:
        name = f"{reading.layer}.weight"
        axis = 1 - input_axis(model.get_submodule(reading.layer))
        rows = (weights[name].movedim(axis, 0).flatten(1) != 0).any(1)
        reading.weight.movedim(axis, 0)[~rows] = 0  # outputs that are removed themselves
    return {name: tensor for reading in readings for name, tensor in reading.named.items()}


@dataclass(eq=False)
class _Reading:
    """A layer whose weight and bias, copies, are compensated when its inputs are known."""

    layer: str
    weight: Tensor
    bias: Tensor | None  # None where it may not change
    tables: Sequence[Tensor]
    targets: Tensor  # its inputs in the dense network, `[samples, inputs]`
    alive: Tensor  # bool `[inputs]`
    centred: bool  # whether bias or BatchNorm takes up a shift
    ridge: float
    done: bool = field(default=False)

    @property
    def named(self) -> dict[str, Tensor]:
        """The parameters by qualified name."""
        named = {f"{self.layer}.weight": self.weight}
        return named if self.bias is None else named | {f"{self.layer}.bias": self.bias}


def _compensate(
    reading: _Reading, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    if reading.done:  # of several calls the first decides
        return
    reading.done = True
    samples = reader_samples(module, args, kwargs)
    matrix = reading.weight.movedim(input_axis(module), -1)
    for table in reading.tables:
        is_alive = reading.alive[table].any(0)
        alive, removed = table[:, is_alive], table[:, ~is_alive]
        if not alive.numel() or not removed.numel():
            continue
        # what is missing: removed channels, and how far the kept ones are from the dense ones
        missing = reading.targets[:, table]
        missing[:, :, is_alive] -= samples[:, alive]
        factors, shifts = _expressed(samples[:, alive], missing, reading)
        # [..., channels] @ [channels, kept], one position after the other
        for position, (factor, shift) in enumerate(zip(factors, shifts, strict=True)):
            dense_weight = matrix[..., table[position]].to(factor)
            matrix[..., alive[position]] += (dense_weight @ factor).to(matrix)
            if reading.bias is not None:
                # of a convolution: summed over its kernel
                change = (dense_weight @ shift).reshape(len(matrix), -1).sum(1)
                reading.bias += change.to(reading.bias)
    matrix[..., ~reading.alive] = 0


def _samples_of(
    model: nn.Module, readers: ChannelReaders, dense: DenseStatistics
) -> dict[str, Tensor]:
    """Return what every reader reads in the dense network, measured once."""
    if dense not in _dense_samples:
        samples: dict[str, Tensor] = {}

        def record(layer: str, module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:  # noqa: ANN401
            if layer not in samples:
                samples[layer] = reader_samples(module, args, kwargs).clone()

        with ExitStack() as hooks:
            for layer in readers:
                module = model.get_submodule(layer)
                hook = module.register_forward_pre_hook(partial(record, layer), with_kwargs=True)
                hooks.enter_context(hook)
            if readers:
                model(next(dense.by_chunk())[0])
        _dense_samples[dense] = samples
    return _dense_samples[dense]


def _expressed(alive: Tensor, missing: Tensor, reading: _Reading) -> tuple[Tensor, Tensor]:
    """Return B = G_MP (G_PP + λI)⁻¹ and the shift of every position, float64.

    From `[samples, positions, channels]`: `[positions, channels, kept]`, `[positions, channels]`.
    """
    alive, missing = alive.transpose(0, 1), missing.transpose(0, 1)
    means = alive.mean(1, keepdim=True), missing.mean(1, keepdim=True)
    if reading.centred:
        alive, missing = alive - means[0], missing - means[1]
    gram, cross = (alive.mT @ alive).double(), (alive.mT @ missing).double()
    energy = gram.diagonal(dim1=1, dim2=2)
    # the smallest normal number: channels that are 0 everywhere express nothing
    energy += reading.ridge * energy.mean(1, keepdim=True) + torch.finfo(gram.dtype).tiny
    factors = torch.linalg.solve(gram, cross).mT
    shifts = (means[1] - means[0] @ factors.mT.to(alive)).squeeze(1).double()
    if not (factors.isfinite().all() and shifts.isfinite().all()):
        raise GapruneError(
            f"compensate: activations at {reading.layer} are not finite, because the network "
            "overflows on these calibration inputs; use other inputs or float32 weights"
        )
    return factors, shifts if reading.centred else torch.zeros_like(shifts)
