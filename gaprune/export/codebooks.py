"""Layers whose weights are a few shared values: what is stored, and how many bits it takes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gaprune.models.target import Target

FLOAT_BITS = 32  # what a weight takes in the dense network, and a centroid in a codebook


@dataclass(frozen=True, eq=False)
class Codebook:
    """The shared values of one layer, and which weight takes which.

    Attributes:
        name: of the layer's weight parameter.
        parts: the parameters that share the codebook: the weight, and its bias if asked.
        size: values in all of them, kept or not.
        centroids: `[k]` in the weights' dtype, ascending, all different.
        assignment: int64 `[kept]`: which centroid each kept value takes, in the order of the parts.
        kept: bool `[size]`: all others are exactly 0 and have no place in the codebook.
    """

    name: str
    parts: tuple[str, ...]
    size: int
    centroids: Tensor = field(repr=False)
    assignment: Tensor = field(repr=False)
    kept: Tensor = field(repr=False)

    @property
    def index_bits(self) -> int:
        """Bits that tell k centroids apart: ⌈log₂ k⌉."""
        return max(0, len(self.centroids) - 1).bit_length()

    @property
    def bits(self) -> int:
        """Bits of indices and codebook, kept · ⌈log₂ k⌉ + 32 · k; without the mask.

        A layer whose kept values all differ stores them as they are, 32 bits each.
        """
        kept, shared = len(self.assignment), len(self.centroids)
        if kept == shared:
            return kept * FLOAT_BITS
        return kept * self.index_bits + shared * FLOAT_BITS

    def values(self) -> Tensor:
        """Return all values of the layer, `[size]`: centroids where kept, else 0."""
        flat = self.centroids.new_zeros(self.size)
        flat[self.kept] = self.centroids[self.assignment]
        return flat


@dataclass(frozen=True, eq=False)
class Codebooks:
    """A network whose weights are shared values, layer by layer.

    Attributes:
        layers: one codebook per layer, by the name of its weight.
        shapes: of every clustered parameter.
        masked: whether masks were given, which must then be stored too.
    """

    layers: Mapping[str, Codebook]
    shapes: Mapping[str, torch.Size]
    masked: bool

    def state(self) -> dict[str, Tensor]:
        """Return the clustered parameters by name; dropped weights are exactly 0."""
        found = {}
        for book in self.layers.values():
            sizes = [self.shapes[name].numel() for name in book.parts]
            for name, values in zip(book.parts, book.values().split(sizes), strict=True):
                found[name] = values.view(self.shapes[name])
        return found

    def model(self, target: Target) -> nn.Module:
        """Return a frozen copy of the target's network with the clustered parameters."""
        model = copy.deepcopy(target.model)
        for name, values in self.state().items():
            model.get_parameter(name).copy_(values)  # in place: tied places see it too
        return model

    @property
    def distinct(self) -> int:
        """Different values other than 0 among the clustered parameters of the network."""
        shared = [book.centroids for book in self.layers.values()]
        return int(torch.cat(shared).unique().count_nonzero())

    @property
    def distinct_by_layer(self) -> dict[str, int]:
        """Different values other than 0 of each layer."""
        return {name: int(b.centroids.count_nonzero()) for name, b in self.layers.items()}

    @property
    def kept(self) -> int:
        """Clustered values that a mask leaves."""
        return sum(len(book.assignment) for book in self.layers.values())

    @property
    def bits_per_weight(self) -> float:
        """Bits of indices and codebooks over the kept weights; the mask is not counted."""
        return sum(book.bits for book in self.layers.values()) / max(1, self.kept)

    @property
    def compression(self) -> float:
        """Bits of the dense clustered layers at 32 each, over what is stored now.

        Without masks n · b / (n · ⌈log₂ k⌉ + k · b), summed over the layers above and below the
        line (Han et al. 2015, eq. 1). With masks only kept weights have indices, and the mask
        itself is counted as 1 bit per weight. Parameters that are not clustered (biases, norms)
        are on neither side.
        """
        size = sum(book.size for book in self.layers.values())
        stored = sum(book.bits for book in self.layers.values())
        if self.masked:
            stored += sum(self.shapes[name].numel() for name in self.layers)
        return size * FLOAT_BITS / stored
