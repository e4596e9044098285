"""Batches of generated inputs that gradient steps see again and again, drawn when first wanted.

Drawing a batch and asking the dense network about it can take longer than the step that it is for,
and a search takes more steps than it needs different batches (benchmarks/README.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gaprune.calibration.generators.mixture import GeneratorMixture
from gaprune.evaluation.forward_modes import TeacherBatch

BATCHES = 128
LEAST = 32  # batches: of fewer, a search learns the inputs by heart
BYTES = 1 << 27  # that all inputs may take, in every worker

Ask = Callable[[Tensor], TeacherBatch]
"""Inputs `[N, …]` from the CPU → the same where the dense network is, with what it answers."""


@dataclass(frozen=True, eq=False)
class BatchPool:
    """What gradient steps choose from. Every worker draws the same batches, each from its own seed.

    Attributes:
        mixture: draws them.
        batches: how many there are.
        seed: of all of them.
    """

    mixture: GeneratorMixture
    batches: int
    seed: int
    _drawn: dict[tuple[int, int, str], TeacherBatch] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def pick(self, count: int, generator: torch.Generator, ask: Ask, way: str) -> TeacherBatch:
        """Return one of the batches, with `count` inputs.

        Args:
            count: inputs.
            generator: chooses.
            ask: asks the dense network.
            way: what the answers depend on beside the inputs: those of another way are others.
        """
        number = int(torch.randint(self.batches, (), generator=generator))
        key = (number, count, way)
        if key not in self._drawn:
            own = torch.Generator().manual_seed(self.seed + number)
            self._drawn[key] = ask(self.mixture.draw(count, own))
        return self._drawn[key]

    def anew(self) -> BatchPool:
        """Return the same stock with nothing drawn yet, for another device."""
        return BatchPool(self.mixture, self.batches, self.seed)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the batches behind: every worker draws its own, the same ones."""
        return {**self.__dict__, "_drawn": {}}


def batch_cache_size(bytes_per_input: int, batch: int, wanted: int = BATCHES) -> int:
    """Return how many batches are held: `wanted`, or what `BYTES` allow; 0 below `LEAST`.

    Args:
        bytes_per_input: of one input.
        batch: inputs per gradient step.
        wanted: at most.
    """
    fits = min(wanted, BYTES // max(1, bytes_per_input * batch))
    return fits if fits >= min(LEAST, wanted) else 0
