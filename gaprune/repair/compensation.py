"""Compensation: kept weights change so that layers compute what they do in the dense network.

On calibration inputs the outputs of every layer are fitted to those of the dense network by its
kept weights (ridge regression), as SparseGPT does row by row (Frantar and Alistarh 2023) and He et
al. (2017) for channels. The inputs are those of the pruned network, so that errors of earlier
layers are made up for. Where there are too few inputs for that, removed channels are expressed by
kept ones, and this is multiplied into the weights that read them, as in Neuron Merging (Kim et al.
2020) with activations in place of weights. Unlike repair, this changes prunable weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from gaprune.criteria.batching import real_tokens
from gaprune.criteria.layer_inputs import (
    CHUNK,
    can_unfold,
    gather_columns,
    outputs_first,
    spread_positions,
    unfold,
)
from gaprune.errors import GapruneError
from gaprune.models.channel_layers import channel_axis
from gaprune.models.channel_readers import (
    MAX_ENTRIES,
    SAMPLES_PER_FEATURE,
    ChannelReaders,
    reader_samples,
)
from gaprune.models.channel_slicing import input_axis
from gaprune.models.forward import functional_call
from gaprune.models.layer_kinds import qualified_name
from gaprune.repair.dense_statistics import DenseStatistics, correct_sites
from gaprune.repair.repair_sites import BIAS, STATISTICS

RIDGE = 1e-3  # λ, relative to the mean energy of the kept inputs
WIDEST = 4096  # weights of an output; above, their Gram matrix takes more than 134 MB
SYSTEMS = 1 << 22  # entries of the matrices of rows that are solved together


class _Expected(NamedTuple):
    """What a layer computes, or reads, in the dense network."""

    samples: Tensor  # `[samples, outputs]`, or without a shape the inputs `[samples, features]`
    shape: torch.Size | None  # of its outputs
    positions: Tensor | None = None  # of the samples among these


# Dense statistics → what layers compute or read in the dense network, on the first chunk.
_measured: WeakKeyDictionary[DenseStatistics, dict[str, _Expected]] = WeakKeyDictionary()


@torch.no_grad()
def compensated_weights(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    readers: ChannelReaders | None,
    dense: DenseStatistics,
    ridge: float = RIDGE,
) -> dict[str, Tensor]:
    """Return the weights and biases of all layers that lost inputs, by qualified name.

    One pass of the first chunk of inputs: every layer is compensated just before it runs, so it
    sees the network as pruned and repaired so far, in which removed channels are still computed.
    Convolutions behind the first one are fitted to their changed inputs, too.

    `weights` are masked parameters that replace those of the dense `model`, by qualified name; what
    is 0 in them is removed. With `readers` these are whole channels, which all weights that read
    them must lack. None compensates linear layers and convolutions for single weights, row by row,
    except those of more than `WIDEST` weights a row.

    Raises:
        GapruneError: activations are not finite.
    """
    inputs, statistics = next(dense.by_chunk())
    repaired = any(rule.part == STATISTICS for rule in dense.sites.rules.values())
    expected = _dense_samples(model, weights, readers, dense)
    replaced = dict(weights) if readers is None else {}
    changed: list[_Reading] = []
    with ExitStack() as hooks:
        for layer, samples in expected.items():
            tables = None if readers is None else readers.get(layer, ())
            reading = _Reading.of(model, layer, weights, tables, repaired, ridge)
            module = model.get_submodule(layer)
            # fitted to them, the last layer would take over the classes of the generated inputs
            if reading.intact and (not isinstance(module, _ConvNd) or samples.shape is None):
                continue
            replaced |= reading.named
            hook = partial(_compensate, reading, samples, changed)
            hooks.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
        sites = without_fitted(dense, replaced).sites
        hooks.enter_context(correct_sites(model, sites, statistics))
        functional_call(model, replaced, (inputs,))
    for reading in changed:
        name = qualified_name(reading.layer, "weight")
        axis = 1 - input_axis(model.get_submodule(reading.layer))
        rows = (weights[name].movedim(axis, 0).flatten(1) != 0).any(1)
        reading.weight.movedim(axis, 0)[~rows] = 0  # outputs that are removed themselves
    return {name: tensor for reading in changed for name, tensor in reading.named.items()}


def without_fitted(dense: DenseStatistics, changed: Mapping[str, Tensor]) -> DenseStatistics:
    """Return statistics without the layers whose biases, by qualified name, were fitted.

    Repair would move them away from the dense network's mean, as narrowed distributions need it.
    """
    rules = {
        name: rule
        for name, rule in dense.sites.rules.items()
        if rule.part != BIAS or qualified_name(name, "bias") not in changed
    }
    return replace(dense, sites=replace(dense.sites, rules=rules))


@dataclass(eq=False)
class _Reading:
    """A layer whose weight and bias, copies, are compensated when its inputs are known."""

    layer: str
    weight: Tensor  # as in the dense network, until it is compensated
    bias: Tensor | None  # None where it may not change
    tables: Sequence[Tensor]
    support: Tensor  # bool, of the shape of the weight: what may change
    centred: bool  # whether bias or BatchNorm takes up a shift
    ridge: float
    intact: bool  # whether nothing is removed

    @classmethod
    def of(  # what a layer is, and how it is compensated
        cls,
        model: nn.Module,
        layer: str,
        weights: Mapping[str, Tensor],
        tables: Sequence[Tensor] | None,
        repaired: bool,  # noqa: FBT001 - a private constructor
        ridge: float,
    ) -> _Reading:
        """Return a layer of the model; it lost whole channels unless `tables` is None."""
        name, module = qualified_name(layer, "weight"), model.get_submodule(layer)
        support = weights[name] != 0
        if tables is not None:  # kept weights may be 0 by chance
            axis = input_axis(module)
            channels = support.movedim(axis, 0).flatten(1).any(1)
            shape = [-1 if dim == axis else 1 for dim in range(support.ndim)]
            support = channels.view(shape).expand_as(support)
        weight, bias = module.get_parameter("weight").clone(), None
        dense_bias: Tensor | None = getattr(module, "bias", None)
        # the taps of a transposed convolution do not all meet at every output
        meets = not getattr(module, "transposed", False)
        if dense_bias is not None and qualified_name(layer, "bias") not in weights and meets:
            bias = dense_bias.clone()
        centred = bias is not None or (dense_bias is None and repaired)
        intact = bool(support.all())
        return cls(layer, weight, bias, tables or (), support, centred, ridge, intact)

    @property
    def named(self) -> dict[str, Tensor]:
        """The parameters by qualified name."""
        named = {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})
        return {qualified_name(self.layer, leaf): tensor for leaf, tensor in named.items()}


def _compensate(
    reading: _Reading,
    expected: _Expected,
    changed: list[_Reading],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    # of several calls the first decides; before the first change inputs are the dense network's
    if reading in changed or (reading.intact and not changed):
        return
    changed.append(reading)
    if expected.shape is None:
        _mix_channels(reading, expected.samples, reader_samples(module, args, kwargs), module)
    else:
        reading.weight.masked_fill_(~reading.support, 0)
        _fit_outputs(reading, expected, next(iter((*args, *kwargs.values()))), module)


def _dense_samples(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    readers: ChannelReaders | None,
    dense: DenseStatistics,
) -> dict[str, _Expected]:
    """Return what every layer computes or reads in the dense network, measured once."""
    if dense not in _measured:
        samples: dict[str, _Expected] = {}
        inputs, _ = next(dense.by_chunk())
        is_real = real_tokens(dense.sites.padding, inputs)

        def record(
            layer: str,
            module: nn.Module,
            args: tuple[Any, ...],
            kwargs: Any,  # noqa: ANN401
            output: Tensor,
        ) -> None:
            if layer in samples:
                return
            size = outputs_first(module, module.get_parameter("weight"))[0].numel()
            count = output.numel() // max(1, output.shape[channel_axis(module, output)])
            enough = readers is None or count >= SAMPLES_PER_FEATURE * size
            if can_unfold(module) and size <= WIDEST and enough:
                outputs = output.movedim(channel_axis(module, output), -1).flatten(0, -2)
                positions = _positions(count, module, outputs.device)
                if is_real is not None and output.shape[:-1] == is_real.shape:
                    positions = positions[is_real.flatten()[positions]]
                samples[layer] = _Expected(outputs[positions], output.shape, positions)
            elif readers is not None and layer in readers:
                samples[layer] = _Expected(reader_samples(module, args, kwargs).clone(), None)

        with ExitStack() as hooks:
            for name in weights:
                layer, _, leaf = name.rpartition(".")
                if leaf == "weight":
                    hook = partial(record, layer)
                    module = model.get_submodule(layer)
                    hooks.enter_context(module.register_forward_hook(hook, with_kwargs=True))
            model(inputs)
        _measured[dense] = samples
    return _measured[dense]


def _positions(count: int, module: nn.Module, device: torch.device) -> Tensor:
    """Return positions of a layer's outputs, as many as memory allows."""
    weight: Tensor = module.weight  # type: ignore[assignment] # replaced ones are no parameters
    size, groups = outputs_first(module, weight)[0].numel(), getattr(module, "groups", 1)
    most = max(MAX_ENTRIES // (groups * size), SAMPLES_PER_FEATURE * size)
    return spread_positions(count, most, device)


def _fit_outputs(reading: _Reading, expected: _Expected, inputs: Tensor, module: nn.Module) -> None:
    """Change the kept weights by the regression of what the outputs lack on the inputs."""
    shift: Tensor | None = None
    gram, cross, sums, lacks = (torch.zeros((), dtype=torch.float64) for _ in range(4))
    for columns, missing in _columns(reading, expected, inputs, module):
        if shift is None:  # inputs far from 0 keep their precision
            shift = columns.mean(1, keepdim=True) * reading.centred
        shifted = columns - shift
        gram = gram + (shifted.mT @ shifted).double()
        cross = cross + (missing.mT @ shifted).double()
        sums, lacks = sums + shifted.sum(1).double(), lacks + missing.sum(1).double()
    assert shift is not None  # a layer has outputs
    count = len(expected.samples)
    if reading.centred:
        gram -= sums[:, :, None] * sums[:, None, :] / count
        cross -= lacks[:, :, None] * sums[:, None, :] / count
    support, weight = (outputs_first(module, x) for x in (reading.support, reading.weight))
    changes = _regressed(gram, cross, support.reshape(cross.shape), reading.ridge)
    if not changes.isfinite().all():
        raise _not_finite(reading.layer)
    weight += changes.view_as(weight).to(weight)
    if reading.bias is not None:
        means = sums / count + shift.squeeze(1)
        change = lacks / count - (changes @ means[:, :, None]).squeeze(-1)
        reading.bias += change.flatten().to(reading.bias)


def _columns(
    reading: _Reading, expected: _Expected, inputs: Tensor, module: nn.Module
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield in chunks what the weight multiplies, and what the outputs lack without it.

    `[groups, samples, size]` and `[groups, samples, rows]`, at least in float32.
    """
    rows = outputs_first(module, reading.weight)
    groups, axes, size = getattr(module, "groups", 1), rows.ndim - 1, rows[0].numel()
    bias = getattr(module, "bias", None)
    outputs = inputs.new_empty(expected.shape or (), device="meta")
    patches, positions = unfold(module, inputs, outputs), expected.positions
    assert patches is not None  # it fitted in the dense network
    assert positions is not None
    wide = torch.promote_types(inputs.dtype, torch.float32)
    weight = rows.to(wide).reshape(groups, -1, size)
    chunk = max(1, CHUNK // (groups * size))
    for part, targets in zip(positions.split(chunk), expected.samples.split(chunk), strict=True):
        columns = gather_columns(patches, part, axes).to(wide)
        columns = columns.reshape(len(part), groups, size).transpose(0, 1)
        missing = targets.to(wide).view(len(part), groups, -1).transpose(0, 1) - columns @ weight.mT
        if bias is not None:
            missing -= bias.view(groups, 1, -1)
        yield columns, missing


def _regressed(gram: Tensor, cross: Tensor, support: Tensor, ridge: float) -> Tensor:
    """Return (G_PP + λI)⁻¹ of what every row lacks, for its inputs P: float64, 0 elsewhere.

    `[groups, size, size]`, `[groups, rows, size]` and the inputs of every row, bool, likewise.
    """
    changes = torch.zeros_like(cross)
    tiny = torch.finfo(gram.dtype).tiny  # inputs that are 0 everywhere express nothing
    counts = support.sum(-1)
    if len(gram) == 1 and (support == support[:, :1]).all():  # one system for all rows
        index = support[0, 0].nonzero().flatten()
        system = gram[0][index][:, index]
        energy = system.diagonal()
        energy += ridge * energy.mean() + tiny
        changes[0][:, index] = torch.linalg.solve(system, cross[0][:, index].mT).mT
        return changes
    order = counts.flatten().argsort(descending=True, stable=True)
    order = order[: int((counts > 0).sum())]
    while len(order):
        width = int(counts.flatten()[order[0]])
        part, order = order.tensor_split([max(1, SYSTEMS // width**2)])
        group, row = part // counts.shape[1], part % counts.shape[1]
        alive, index = support[group, row].byte().sort(dim=1, descending=True, stable=True)
        alive, index = alive[:, :width] > 0, index[:, :width]
        system = gram[group[:, None, None], index[:, :, None], index[:, None, :]]
        system *= alive[:, :, None] & alive[:, None, :]
        energy = system.diagonal(dim1=1, dim2=2)
        damping = ridge * energy.sum(1, keepdim=True) / alive.sum(1, keepdim=True) + tiny
        energy += torch.where(alive, damping, 1.0)
        right = cross[group, row].gather(1, index) * alive
        solved = torch.linalg.solve(system, right)
        changes[group, row] = changes[group, row].scatter(1, index, solved)
    return changes


def _mix_channels(reading: _Reading, targets: Tensor, samples: Tensor, module: nn.Module) -> None:
    """Express every channel by the kept ones, and multiply this into the weights."""
    axis = input_axis(module)
    removed_inputs = ~reading.support.movedim(axis, 0).flatten(1).any(1)
    matrix = reading.weight.movedim(axis, -1)
    for table in reading.tables:
        is_alive = ~removed_inputs[table].all(0)
        alive, removed = table[:, is_alive], table[:, ~is_alive]
        if not alive.numel() or not removed.numel():
            continue
        # what is missing: removed channels, and how far the kept ones are from the dense ones
        missing = targets[:, table]
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
    matrix[..., removed_inputs] = 0


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
        raise _not_finite(reading.layer)
    return factors, shifts if reading.centred else torch.zeros_like(shifts)


def _not_finite(layer: str) -> GapruneError:
    return GapruneError(
        f"compensate: activations at {layer} are not finite, because the network overflows on "
        "these calibration inputs; use other inputs or float32 weights"
    )
