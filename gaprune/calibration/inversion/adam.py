"""Adam without torch's compiler.

The first optimiser of `torch.optim` imports the compiler: three seconds that every run would pay.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MEAN_DECAY, SQUARE_DECAY, EPSILON = 0.9, 0.999, 1e-8


class AdamSteps:
    """Adam (Kingma and Ba 2015, algorithm 1), bit for bit as `torch.optim.Adam` computes it.

    `values` are changed in place by every step.
    """

    def __init__(self, values: Sequence[Tensor]) -> None:
        self._values = values
        self._means = [torch.zeros_like(value) for value in values]
        self._squares = [torch.zeros_like(value) for value in values]
        self._count = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rate: float) -> None:
        """Take one step; `gradients` have the shapes of the values."""
        self._count += 1
        corrected = rate / (1 - MEAN_DECAY**self._count)
        root = (1 - SQUARE_DECAY**self._count) ** 0.5
        states = zip(self._values, self._means, self._squares, gradients, strict=True)
        for value, mean, square, gradient in states:
            mean.lerp_(gradient, 1 - MEAN_DECAY)
            square.mul_(SQUARE_DECAY).addcmul_(gradient, gradient, value=1 - SQUARE_DECAY)
            value.addcdiv_(mean, (square.sqrt() / root).add_(EPSILON), value=-corrected)
