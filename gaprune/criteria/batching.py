"""How calibration inputs pass through the network: in batches that fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from gaprune.models.network import DenseNetwork

MAX_BATCH = 256  # inputs per forward pass
TEXTS = 2  # axes of token ids: texts and positions
MEMORY = 4e8  # bytes that the activations of one batch may take


def batches(
    network: DenseNetwork, calibration: Tensor | None, size: int = MAX_BATCH
) -> Iterator[Tensor]:
    """Yield the calibration inputs `[N, ...]` in order, at most `size` at once, on the device."""
    assert calibration is not None  # `score_with` has checked it
    for start in range(0, len(calibration), size):
        yield calibration[start : start + size].to(network.device)


def real_tokens(padding: int | None, inputs: Tensor) -> Tensor | None:
    """Return which positions of texts are no padding (a token id), `[N, length]`; None: all count.

    What layers compute at others is never used.
    """
    if padding is None or inputs.ndim != TEXTS:
        return None
    is_real = inputs != padding
    return None if bool(is_real.all()) else is_real


def batch_size(bytes_per_input: int, copies: int = 1) -> int:
    """Return how many inputs fit into `MEMORY`, `copies` times each, from 1 to `MAX_BATCH`."""
    return max(1, min(MAX_BATCH, int(MEMORY // (bytes_per_input * copies))))


def largest_input(model: nn.Module, example: Tensor) -> int:
    """Return the bytes of the largest tensor that a module takes, for an example."""
    sizes = [1]

    def record(_module: nn.Module, args: tuple[Any, ...]) -> None:
        sizes.extend(arg.nbytes for arg in args if isinstance(arg, Tensor))

    with ExitStack() as hooks:
        for module in model.modules():
            hooks.enter_context(module.register_forward_pre_hook(record))
        model(example)
    return max(sizes)
