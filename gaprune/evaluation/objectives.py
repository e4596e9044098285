"""From the outputs of the masked and the dense network to one number; larger is better."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gaprune import plugins
from gaprune.errors import InputError, unknown_name
from gaprune.io.user_code import call_user, load_function

Metric = Callable[[Tensor, Tensor, Tensor | None], Tensor]
WORST = -1e9  # stands for every non-finite value: NaN would win any comparison in selection
SHARPNESS = 2.0  # factor on logits: the decision counts more than the confidence (benchmarks/)


@dataclass(frozen=True)
class Objective:
    """What the search maximises, what steers its gradients, and how the result is judged.

    Each measure takes outputs `[N, …]`, the dense network's outputs of the same shape and labels
    `[N]` (or None), and returns a scalar tensor.

    Attributes:
        name: key of `OBJECTIVES`, or the user's `file.py:function`.
        fitness: larger is better.
        loss: differentiable in the outputs, smaller is better; None for a black box.
        agreement: agreement with the dense network (or the labels), 1 is perfect.
        needs_labels: whether it can be computed without labels.
    """

    name: str
    fitness: Metric
    loss: Metric | None
    agreement: Metric
    needs_labels: bool = False

    def score(self, outputs: Tensor, teacher: Tensor, labels: Tensor | None) -> float:
        """Return the fitness as a finite number."""
        return finite(float(self.fitness(outputs, teacher, labels)))


def finite(value: float) -> float:
    """Return `value`, or `WORST` where it is NaN, infinite or worse than that."""
    return max(value, WORST) if math.isfinite(value) else WORST


def kl_divergence(outputs: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
    """KL(teacher ‖ outputs) of sharpened predictions in nats, mean over N; classes on axis 1."""
    log_teacher = functional.log_softmax(SHARPNESS * teacher, dim=1)
    log_outputs = functional.log_softmax(SHARPNESS * outputs, dim=1)
    return (log_teacher.exp() * (log_teacher - log_outputs)).sum(dim=1).mean()


def agreement(outputs: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
    """Fraction of inputs on which both networks name the same class; classes on axis 1."""
    return (outputs.argmax(1) == teacher.argmax(1)).double().mean()


def accuracy(outputs: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
    """Fraction of inputs whose arg-max class is the label."""
    return (outputs.argmax(1) == _given(labels)).double().mean()


def cross_entropy(outputs: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
    """Cross-entropy of sharpened predictions against the labels, mean over N."""
    return functional.cross_entropy(SHARPNESS * outputs, _given(labels))


def relative_error(outputs: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
    """‖outputs − teacher‖² ÷ ‖teacher − its mean‖²: 0 is perfect, 1 is no better than the mean."""
    spread = (teacher - teacher.mean(0, keepdim=True)).square().sum()
    return (outputs - teacher).square().sum() / spread.clamp_min(torch.finfo(spread.dtype).tiny)


def _given(labels: Tensor | None) -> Tensor:
    if labels is None:
        raise InputError(
            "objective: 'accuracy' needs labelled calibration inputs; give --calibration labelled:FILE"
        )
    return labels


def _minus(measure: Metric) -> Metric:
    return lambda outputs, teacher, labels: -measure(outputs, teacher, labels)


def _explained(outputs: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
    return (1 - relative_error(outputs, teacher, labels)).clamp_min(0)


OBJECTIVES: dict[str, Objective] = {
    "kl": Objective("kl", _minus(kl_divergence), kl_divergence, agreement),
    "agreement": Objective("agreement", agreement, kl_divergence, agreement),
    "accuracy": Objective("accuracy", accuracy, cross_entropy, agreement, needs_labels=True),
    "logits": Objective("logits", _minus(relative_error), relative_error, agreement),
    "relative-error": Objective(
        "relative-error", _minus(relative_error), relative_error, _explained
    ),
}
AUTO = "auto"


def find_objective(name: str, teacher: Tensor) -> Objective:
    """Return an objective by name, checked against the shape of the network's outputs.

    `kl` looks at the decision, which generated inputs leave clear. Inverted inputs lie between
    classes; what agrees on them in every logit does better on real ones (`logits`), and a run that
    shows them takes that instead of `kl`.

    Args:
        name: `auto` (`kl` for logits `[N, classes]`, else `relative-error`), a key of
            `OBJECTIVES`, what a plug-in adds, or `path/to/file.py:function` with the signature
            `(outputs, teacher, labels) -> float`, larger is better; it is given CPU tensors.
        teacher: outputs of the dense network, `[N, …]`.

    Raises:
        InputError: unknown name; a class objective on outputs without classes.
    """
    classes = teacher.ndim >= 2 and teacher.shape[1] >= 2
    if name == AUTO:
        return OBJECTIVES["kl" if classes and teacher.ndim == 2 else "relative-error"]
    agreement_of = OBJECTIVES["kl" if classes else "relative-error"].agreement
    if ":" in name:
        return black_box(name, load_function(name, "objective"), agreement_of)
    found = OBJECTIVES.get(name)
    if found is None:
        found = plugins.find_plugin(plugins.OBJECTIVES, name, partial(read_objective, agreement_of))
    if found is None:
        added = plugins.plugin_names(plugins.OBJECTIVES, OBJECTIVES)
        raise unknown_name("objective", name, [*OBJECTIVES, *added, AUTO, "FILE.py:FUNCTION"])
    if found.agreement is agreement and not classes:
        raise InputError(
            f"objective: {name!r} compares classes, but the network's outputs have shape "
            f"{tuple(teacher.shape)}; use 'relative-error' or a FILE.py:FUNCTION"
        )
    return found


def read_objective(agreement_of: Metric, plugin: plugins.Plugin, held: Any) -> Objective:  # noqa: ANN401
    """Return the objective that a plug-in is: an `Objective`, or a function as of a file.

    Raises:
        InputError: it is neither.
    """
    if isinstance(held, Objective):
        return replace(held, name=plugin.name)
    return black_box(plugin.name, plugins.require_function(plugin, held), agreement_of)


def black_box(spec: str, function: Callable[..., Any], agreement_of: Metric) -> Objective:
    """Return the objective of a user's function, which has no gradient.

    Args:
        spec: what it is called.
        function: `(outputs, teacher, labels) -> float` on CPU tensors, larger is better.
        agreement_of: of the result.
    """

    def fitness(outputs: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        shown = (None if one is None else one.cpu() for one in (outputs, teacher, labels))
        value = call_user(function, *shown, where=f"objective: {spec}")
        try:
            return torch.tensor(float(value), dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:  # torch: more than one element
            raise InputError(
                f"objective: {spec} must return one number, got {type(value).__name__}"
            ) from error

    return Objective(spec, fitness, None, agreement_of)
