"""A fixed set of generated batches that gradient steps reuse; each is drawn when first needed.

Drawing a batch and running the dense network on it can take longer than the gradient step itself,
and a search takes many more steps than it needs different batches (benchmarks/README.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from gaprune.calibration.generators.mixture import GeneratorMixture
from gaprune.evaluation.forward_modes import TeacherBatch
from gaprune.models.forward import batched_forward
from gaprune.models.network import DenseNetwork

BATCHES = 128
MIN_BATCHES = 32  # with fewer, a search overfits the inputs
BYTES = 1 << 27  # limit on the inputs of all batches, in every worker


@dataclass(frozen=True, eq=False)
class BatchPool:
    """Batches for gradient steps. Every worker draws the same ones: batch i uses `seed + i`."""

    mixture: GeneratorMixture
    batches: int
    seed: int
    _drawn: dict[tuple[int, int, str], TeacherBatch] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def pick(
        self, count: int, generator: torch.Generator, network: DenseNetwork, precision: str
    ) -> TeacherBatch:
        """Return one of the batches, of `count` inputs; other precisions have other batches."""
        # The task's generator chooses the batch, whose own seed draws it: every worker that picks
        # batch i gets the same inputs.
        index = int(torch.randint(self.batches, (), generator=generator))
        key = (index, count, precision)
        if key not in self._drawn:
            seeded = torch.Generator().manual_seed(self.seed + index)
            inputs = self.mixture.draw(count, seeded).to(network.device)
            teacher = batched_forward(network.model, inputs)
            self._drawn[key] = TeacherBatch(inputs, teacher, None)
        return self._drawn[key]

    def __getstate__(self) -> dict[str, Any]:
        """Drop the batches when pickling: every worker draws the same ones itself."""
        return {**self.__dict__, "_drawn": {}}


def batch_cache_size(bytes_per_input: int, batch: int, limit: int = BATCHES) -> int:
    """Return how many batches of `batch` inputs fit into `BYTES`; 0 below `MIN_BATCHES`."""
    # Rather no cache than a small one: too few different inputs are overfitted.
    fits = min(limit, BYTES // max(1, bytes_per_input * batch))
    return fits if fits >= min(MIN_BATCHES, limit) else 0
