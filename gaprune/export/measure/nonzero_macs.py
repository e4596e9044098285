"""How many multiply-adds a network takes, and how many of them meet a weight that is not 0."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gaprune.models.macs import macs_per_input
from gaprune.models.prunable import PRUNABLE_LAYERS


class NonzeroMacs(NamedTuple):
    """Multiply-adds for one input.

    Attributes:
        all: as any dense runtime does them.
        nonzero: those with a weight that is not 0, which a runtime would need that skips zeros;
            None where the weights of a layer cannot be told.
    """

    all: int
    nonzero: int | None


@torch.no_grad()
def work_of(model: nn.Module, example: Tensor) -> NonzeroMacs:
    """Count for one input `[1, …]`; layers that are no linear ones or convolutions count whole."""
    total = macs_per_input(model, example)
    with FlopCounterMode(display=False) as counter:
        model(example)
    by_layer = {
        name: sum(counts.values()) // 2 for name, counts in counter.get_flop_counts().items()
    }
    root = type(model).__name__
    skipped = 0
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, tuple(PRUNABLE_LAYERS)) and isinstance(weight, Tensor):
            macs = by_layer.get(f"{root}.{name}" if name else root, 0)
            skipped += macs - round(macs * int(weight.count_nonzero()) / max(1, weight.numel()))
    return NonzeroMacs(total, total - skipped)
