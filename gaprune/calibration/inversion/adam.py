"""Adam of torch without torch's compiler.

The first optimiser object of `torch.optim` imports the compiler: three seconds that every run would
pay. The function below it does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam


class AdamSteps:
    """Adam (Kingma and Ba 2015, algorithm 1), bit for bit as `torch.optim.Adam` computes it.

    `values` are changed in place by every step.
    """

    def __init__(self, values: Sequence[Tensor]) -> None:
        self._values = list(values)
        self._means = [torch.zeros_like(value) for value in values]
        self._squares = [torch.zeros_like(value) for value in values]
        self._counts = [torch.tensor(0.0) for _ in values]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rate: float) -> None:
        """Take one step; `gradients` have the shapes of the values."""
        adam(
            self._values,
            list(gradients),
            self._means,
            self._squares,
            [],  # largest squares, of AMSGrad
            self._counts,
            foreach=False,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
