"""The layers that read removable channels, and the activations that they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gaprune.masks.units import ChannelUnits
from gaprune.models.channel_layers import channel_axis

# Samples of a layer and batch, evenly spaced: so many entries, or so many samples per feature.
MAX_ENTRIES, SAMPLES_PER_FEATURE = 1 << 22, 4

ChannelReaders = Mapping[str, Sequence[Tensor]]
"""Layer → tables of its input features, `[positions, channels]`; every feature is in one.

Where a linear layer reads flattened pictures, its features are those of several positions.
"""


def find_readers(model: nn.Module, units: ChannelUnits) -> ChannelReaders:
    """Return the layers that read channels which are units.

    A unit may be several channels, such as an attention head; they are expressed one by one.
    """
    total, readers = units.layout.total, {}
    made = [indices.units[0] for indices in units.indices if indices.units[0] is not None]
    counts = torch.stack([unit_of.bincount(minlength=total + 1) for unit_of in made])
    widths = counts.amax(0).clamp_min(1)  # channels of every unit
    for name, indices in zip(units.weights.names, units.indices, strict=True):
        unit_of = indices.units[1]
        if unit_of is None:
            continue
        layer = name.rpartition(".")[0]
        positions = (unit_of.bincount(minlength=total + 1) // widths).clamp_min(1)[unit_of]
        # features without a unit stand alone, as those of other layers do
        positions[unit_of == total] = 1
        if not isinstance(model.get_submodule(layer), nn.Linear):
            positions.fill_(1)
        tables = []
        for count in positions.unique().tolist():
            features = (positions == count).nonzero().flatten()
            by_unit = features[unit_of[features].argsort(stable=True)]
            tables.append(by_unit.view(-1, count).T)
        readers[layer] = tables
    return readers


def reader_samples(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return what a layer is called with as `[samples, features]`, at least in float32."""
    inputs: Tensor = next(iter((*args, *kwargs.values())))
    samples = inputs.movedim(channel_axis(module, inputs), -1).flatten(0, -2)
    features = samples.shape[1]
    most = max(MAX_ENTRIES // features, SAMPLES_PER_FEATURE * features)
    samples = samples[:: -(-len(samples) // most)]
    return samples.float() if samples.element_size() < torch.float32.itemsize else samples
