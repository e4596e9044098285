"""What one forward pass costs, and the batch that suits it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

SMALLEST_BATCH, LARGEST_BATCH = 32, 256
STEP_WORK = 1e9  # multiply-adds of one forward pass in a gradient step: some 50 ms on one core


@torch.no_grad()
def macs_per_input(model: nn.Module, example: Tensor) -> int:
    """Count the multiply-adds of a forward pass on one input `[1, …]`."""
    with FlopCounterMode(display=False) as counter:
        model(example)
    return int(counter.get_total_flops()) // 2


def suitable_batch(macs: int) -> int:
    """Return the power of two, from 32 to 256, whose forward pass costs at most `STEP_WORK`.

    It depends on the network alone, not on the machine, so that a seed means the same everywhere.
    """
    batch = LARGEST_BATCH
    while batch > SMALLEST_BATCH and batch * macs > STEP_WORK:
        batch //= 2
    return batch
