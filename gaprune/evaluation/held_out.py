"""Held-out inputs, on which every network of a comparison or a sweep is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from gaprune.calibration.samples import Samples
from gaprune.evaluation.labelled import check_inputs, check_labelled
from gaprune.evaluation.objectives import AUTO, Metric, accuracy, find_objective, finite
from gaprune.models.forward import batched_forward, functional_forward
from gaprune.models.target import Target

ROUNDING = 1e-9  # accuracies are counts over N; in binary, 0.98 − 0.97 is more than 0.01


class HeldOutScore(NamedTuple):
    """Accuracy on the labels of held-out inputs, if any; agreement with the dense network."""

    accuracy: float | None
    agreement: float

    def loses(self, dense: HeldOutScore) -> float:
        """Return the loss of accuracy since `dense`, or of agreement without labels."""
        if self.accuracy is None or dense.accuracy is None:
            return dense.agreement - self.agreement
        return dense.accuracy - self.accuracy

    def within(self, dense: HeldOutScore, max_drop: float) -> bool:
        """Return whether the loss since `dense` is at most `max_drop`, a fraction of 1."""
        return self.loses(dense) <= max_drop + ROUNDING


class HeldOut:
    """Held-out inputs with the outputs of the dense network, computed once.

    `source` tells where the inputs come from, `dense` is the score of the dense network.

    Raises:
        InputError: the inputs or labels do not fit the target.
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
        # Classes are compared by agreement, everything else by explained variance.
        self._agreement = find_objective(AUTO, self._teacher, target.inputs.vocabulary).agreement
        self.dense = self._score(self._teacher)

    def measure(self, model: nn.Module) -> HeldOutScore:
        """Score a network, which may have other layers than the target."""
        return self._score(batched_forward(model, self._inputs))

    def measure_with(self, weights: Mapping[str, Tensor]) -> HeldOutScore:
        """Score the target with some of its parameters replaced, by name."""
        return self._score(functional_forward(self._target.model, weights, self._inputs))

    def _score(self, outputs: Tensor) -> HeldOutScore:
        return HeldOutScore(
            None if self._labels is None else self._mean(accuracy, outputs),
            self._mean(self._agreement, outputs),
        )

    def _mean(self, metric: Metric, outputs: Tensor) -> float:
        """Average a metric over all inputs; those without finite outputs count as wrong."""
        # An input with NaN or infinite outputs must not make the whole mean NaN.
        valid = outputs.flatten(1).isfinite().all(dim=1)
        if not valid.any():
            return 0.0
        labels = None if self._labels is None else self._labels[valid]
        value = finite(float(metric(outputs[valid], self._teacher[valid], labels)))
        return max(0.0, value) * float(valid.double().mean())
