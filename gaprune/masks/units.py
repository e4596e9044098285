"""What a pattern of units does: from masks of units to masks of weights, and back for numbers."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from gaprune.masks.supermask import Layout


class Units(Protocol):
    """Groups of weights that share one score.

    A search under such a pattern knows units alone: scores, masks, budgets and operators are over
    `layout`, and only the evaluator and the result ask for weights.
    """

    @property
    def layout(self) -> Layout:
        """The units, layer by layer."""

    @property
    def weights(self) -> Layout:
        """The network's prunable weights."""

    def weight_mask(self, mask: Tensor) -> Tensor:
        """Return the flat mask of the weights, of a flat mask of the units; on its device."""

    def unit_gradient(self, values: Tensor, mask: Tensor) -> Tensor:
        """Return for every unit the sum of `values` over the weights that it alone decides on.

        Args:
            values: flat, one per weight.
            mask: flat, of the units. A weight that another dropped unit holds down is not summed.

        Returns:
            Flat float32, one per unit: the gradient of the scores, where `values` are those of
            weights, by the product rule.
        """

    def unit_mean(self, values: Tensor) -> Tensor:
        """Return the mean of `values` over all weights of every unit."""
