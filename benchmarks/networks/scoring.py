"""Outputs of a network on test inputs, and comparisons of outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

BATCH = 100  # inputs per forward pass; limits the memory of activations


@torch.no_grad()
def outputs_of(model: nn.Module, inputs: Tensor, batch: int = BATCH) -> Tensor:
    """Return a network's outputs `[N, …]` for inputs `[N, …]`, computed in batches."""
    return torch.cat([model(part) for part in inputs.split(batch)])


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """Return the fraction of outputs `[N, classes]` that are largest at the label (top-1)."""
    return float((outputs.argmax(1) == labels).double().mean())


def same_class(outputs: Tensor, dense: Tensor) -> float:
    """Return the fraction of outputs `[N, classes]` that are largest where the dense ones are."""
    return accuracy(outputs, dense.argmax(1))


def mean_cosine(outputs: Tensor, dense: Tensor) -> float:
    """Return the mean cosine between outputs `[N, features]` and the dense ones."""
    return float(functional.cosine_similarity(outputs.double(), dense.double()).mean())
