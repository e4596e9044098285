"""What a comparison ranks: weights, or the units of a pattern; and the masks that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gaprune.config import Settings
from gaprune.masks.budget import keep_total, uniform_counts
from gaprune.masks.supermask import Layout, global_mask, layered_mask
from gaprune.masks.units import ChannelUnits, Units
from gaprune.models.patterns import searched_layout, units_of
from gaprune.models.target import Target
from gaprune.pattern_names import CHANNEL, UNSTRUCTURED, BlockPattern, NMPattern, parse_pattern

WEIGHTS, QUOTA, BLOCK, CHANNELS = "weights", "N:M", "blocks", "channels"
OF_UNITS = (BLOCK, CHANNELS)
_KINDS = {NMPattern: QUOTA, BlockPattern: BLOCK}
_NAMES = {UNSTRUCTURED: WEIGHTS, CHANNEL: CHANNELS}


def kind_of(pattern: str) -> str:
    """Return the kind of a pattern: `weights`, `N:M`, `blocks` or `channels`."""
    found = parse_pattern(pattern)
    return _NAMES[found] if isinstance(found, str) else _KINDS[type(found)]


@dataclass(frozen=True, eq=False)
class RankedUnits:
    """What methods rank under a pattern; masks are flat, over the network's weights.

    A floor is not kept here: criteria are compared as they were published.

    Attributes:
        layout: of weights, with the quota of the pattern; or of its units.
        units: None where every weight has a score of its own.
    """

    layout: Layout
    units: Units | None

    @classmethod
    def of(cls, target: Target, settings: Settings) -> RankedUnits:
        """Return the ground of a target.

        Raises:
            InputError: the pattern has no place in this network.
            GapruneError: torch-pruning is not installed.
        """
        layout = searched_layout(target, settings).with_floor(0.0)
        return cls(layout, units_of(target, settings))

    def best(self, scores: Tensor, sparsity: float) -> Tensor:
        """Keep what has the best scores of all layers; of units, the best means."""
        ranked = self._ranked(scores)
        if self.layout.n_of_m is not None:
            return self._under_quota(ranked)
        return self._spread(global_mask(ranked, self.layout, keep_total(self.layout, sparsity)))

    def best_in_layers(self, scores: Tensor, sparsity: float) -> Tensor:
        """Keep what has the best scores of its layer, the same part of every one."""
        return self.units_in_layers(self._ranked(scores), sparsity)

    def units_in_layers(self, ranked: Tensor, sparsity: float) -> Tensor:
        """Do the same with one score for each that is ranked."""
        if self.layout.n_of_m is not None:
            return self._under_quota(ranked)
        counts = uniform_counts(self.layout, sparsity)
        return self._spread(layered_mask(ranked, self.layout, counts))

    def _ranked(self, scores: Tensor) -> Tensor:
        return scores if self.units is None else self.units.unit_mean(scores)

    def _spread(self, mask: Tensor) -> Tensor:
        return mask if self.units is None else self.units.weight_mask(mask)

    def _under_quota(self, scores: Tensor) -> Tensor:
        quota, layout = self.layout.n_of_m, self.layout
        assert quota is not None
        return quota.mask(scores, layout.slices, layout.shapes)


def norms_of_channels(channels: ChannelUnits, weights: Tensor, norm: float) -> Tensor:
    """Return the norm of all weights that make a channel, one per unit (Li et al. 2017).

    Args:
        channels: the units.
        weights: flat, `[total]`.
        norm: 1 or 2.
    """
    sums = torch.zeros(channels.layout.total + 1, dtype=torch.float64)
    parts: Sequence[Tensor] = list(channels.weights.split(weights.double().cpu().abs()).values())
    for one, wiring in zip(parts, channels.indices, strict=True):
        made, axis = wiring.units[0], wiring.axes[0]
        if made is not None:
            powers = one.movedim(axis, 0).flatten(1) if one.ndim > 1 else one.unsqueeze(1)
            sums.index_add_(0, made.cpu(), (powers**norm).sum(1))
    return (sums[:-1] ** (1 / norm)).float().to(weights.device)
