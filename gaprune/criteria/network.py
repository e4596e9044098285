"""What a criterion may look at, and how calibration inputs reach the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gaprune.errors import InputError
from gaprune.models.network import DenseNetwork

MAX_BATCH = 256  # calibration inputs shown at once
MEMORY = 4e8  # bytes that the activations of one batch may take


ScoreFunction = Callable[[DenseNetwork, Tensor | None, float | None, torch.Generator], Tensor]
"""`(network, calibration, density, generator)` → flat float32 scores `[total]`; higher means keep."""


def batches(
    network: DenseNetwork, calibration: Tensor | None, size: int = MAX_BATCH
) -> Iterator[Tensor]:
    """Yield the calibration inputs `[N, ...]` in order, at most `size` at once, on the weights' device.

    Raises:
        InputError: there are no calibration inputs.
    """
    shown = checked(calibration)
    for start in range(0, len(shown), size):
        yield shown[start : start + size].to(network.device)


def checked(calibration: Tensor | None) -> Tensor:
    """Return the calibration inputs `[N, ...]`.

    Raises:
        InputError: there are none.
    """
    if calibration is None or len(calibration) == 0:
        raise InputError(
            "calibration inputs: this criterion shows inputs to the network and got none; pass [N, ...]"
        )
    return calibration


def fitting(per_input: int, passes: int = 1) -> int:
    """Return how many calibration inputs may be shown at once, from 1 to `MAX_BATCH`.

    Args:
        per_input: bytes that one calibration input takes between forward and backward (`activation_bytes`).
        passes: how many times as much the criterion holds.
    """
    return max(1, min(MAX_BATCH, int(MEMORY // (per_input * passes))))
