"""What a criterion may look at, and how calibration inputs reach the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gaprune.errors import InputError
from gaprune.masks.supermask import Layout
from gaprune.models.input_spec import InputSpec

T = TypeVar("T")
MAX_BATCH = 256  # calibration inputs shown at once
MEMORY = 4e8  # bytes that the activations of one batch may take


@dataclass(frozen=True)
class Network:
    """A dense network as criteria see it; none of them may change it.

    Attributes:
        model: in eval mode, its parameters frozen (`requires_grad` False).
        weights: qualified parameter name → dense weight, the prunable ones only.
        layout: where each of them lies in the flat score vector.
        inputs: shape and kind of one input.
    """

    model: nn.Module
    weights: Mapping[str, Tensor]
    layout: Layout
    inputs: InputSpec
    _known: dict[str, tuple[Tensor, int, Any]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def once(self, what: str, calibration: Tensor, measure: Callable[[], T]) -> T:
        """Return what is measured on calibration inputs; criteria that follow each other measure it once.

        Args:
            what: names it.
            calibration inputs: those that it was measured on last are known by identity, and not changed since.
            measure: gives it; nobody may change what it gives.
        """
        version = 0 if calibration.is_inference() else calibration._version  # noqa: SLF001 # no public name
        held = self._known.get(what)
        if held is None or held[0] is not calibration or held[1] != version:
            held = self._known[what] = (calibration, version, measure())
        found: T = held[2]
        return found

    @property
    def flat(self) -> Tensor:
        """All prunable weights as one vector `[total]`."""
        return self.layout.flatten({name: weight.detach() for name, weight in self.weights.items()})


ScoreFunction = Callable[[Network, Tensor | None, float | None, torch.Generator], Tensor]
"""`(network, calibration, density, generator)` → flat float32 scores `[total]`; higher means keep."""


def batches(
    network: Network, calibration: Tensor | None, size: int = MAX_BATCH
) -> Iterator[Tensor]:
    """Yield the calibration inputs `[N, ...]` in order, at most `size` at once, on the weights' device.

    Raises:
        InputError: there are no calibration inputs.
    """
    shown = checked(calibration)
    device = next(iter(network.weights.values())).device
    for start in range(0, len(shown), size):
        yield shown[start : start + size].to(device)


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
