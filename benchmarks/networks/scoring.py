"""Running a network over held-out inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BATCH = 100  # inputs per forward pass: bounds the memory of activations


@torch.no_grad()
def outputs_of(model: nn.Module, inputs: Tensor, batch: int = BATCH) -> Tensor:
    """Return a network's outputs `[N, …]` for inputs `[N, …]`, computed in batches."""
    return torch.cat([model(part) for part in inputs.split(batch)])


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor, batch: int = BATCH) -> float:
    """Return the fraction of inputs whose largest output is the label (top-1)."""
    named = outputs_of(model, inputs, batch).argmax(1)
    return float((named == labels).double().mean())
