"""Held-out inputs: what every network of a comparison or a sweep is measured on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gaprune.calibration.samples import Samples
from gaprune.errors import InputError
from gaprune.evaluation.labelled import check_inputs, check_labelled
from gaprune.evaluation.objectives import AUTO, Metric, accuracy, find_objective, finite
from gaprune.models.forward import CHUNK, batched_forward
from gaprune.models.target import Target

ROUNDING = 1e-9  # accuracies are counts over N: 0.98 − 0.97 is more than 0.01 in binary


class HeldOutScore(NamedTuple):
    """How a network does on held-out inputs.

    Attributes:
        accuracy: on their labels, or None without.
        agreement: with the dense network, 1 is perfect.
    """

    accuracy: float | None
    agreement: float

    def loses(self, dense: HeldOutScore) -> float:
        """Return the accuracy lost since `dense`, or the agreement where there are no labels."""
        if self.accuracy is None or dense.accuracy is None:
            return dense.agreement - self.agreement
        return dense.accuracy - self.accuracy

    def within(self, dense: HeldOutScore, max_drop: float) -> bool:
        """Tell whether it loses no more than `max_drop`, a part of 1."""
        return self.loses(dense) <= max_drop + ROUNDING


class HeldOut:
    """Inputs with what the dense network answers, computed once.

    Args:
        target: the dense network.
        samples: inputs `[N, …]`, with labels `[N]` where there are any.

    Attributes:
        source: where the inputs came from, in words.
        dense: how the dense network does.

    Raises:
        InputError: inputs or labels that do not fit the target.
    """

    def __init__(self, target: Target, samples: Samples) -> None:
        if samples.labels is None:
            check_inputs("held_out", samples, target)
        else:
            check_labelled("held_out", samples, target)
        self.source = samples.source
        self._target = target
        self._inputs = samples.inputs.to(target.device)
        self._labels = None if samples.labels is None else samples.labels.to(target.device)
        self._teacher = batched_forward(target.model, self._inputs)
        objective = find_objective(AUTO, self._teacher)
        self._agreement = objective.agreement
        if self._labels is not None and objective.name != "kl":
            raise InputError(
                "held_out: labels are classes, but the network's outputs have shape "
                f"{tuple(self._teacher.shape)}; leave the labels out"
            )
        self.dense = self._score(self._teacher)

    def measure(self, model: nn.Module) -> HeldOutScore:
        """Measure a network, which may have other layers than the target."""
        return self._score(batched_forward(model, self._inputs))

    @torch.no_grad()
    def measure_with(self, weights: Mapping[str, Tensor]) -> HeldOutScore:
        """Measure the target with some of its parameters replaced, by name."""
        replaced, batches = dict(weights), self._inputs.split(CHUNK)
        outputs = [functional_call(self._target.model, replaced, (batch,)) for batch in batches]
        return self._score(torch.cat(outputs))

    def _score(self, outputs: Tensor) -> HeldOutScore:
        labelled = self._labels is not None
        return HeldOutScore(
            self._part(accuracy, outputs) if labelled else None,
            self._part(self._agreement, outputs),
        )

    def _part(self, measure: Metric, outputs: Tensor) -> float:
        """Take a mean over the inputs, of which those without finite outputs count as wrong."""
        sound = outputs.flatten(1).isfinite().all(dim=1)
        if not sound.any():
            return 0.0
        labels = None if self._labels is None else self._labels[sound]
        value = finite(float(measure(outputs[sound], self._teacher[sound], labels)))
        return max(0.0, value) * float(sound.double().mean())
