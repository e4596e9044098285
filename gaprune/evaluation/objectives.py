"""Objectives: compare the outputs of a pruned network with the teacher's; larger is better."""

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
WORST = -1e9  # replaces every non-finite value, because comparisons with NaN are always false
SHARPNESS = 2.0  # factor on logits: the decision counts more than the confidence (benchmarks/)


@dataclass(frozen=True)
class Objective:
    """What a search maximises, the loss of its gradient steps, and how its result is measured.

    Each metric takes outputs `[N, …]`, the teacher's outputs of the same shape and labels `[N]` (or
    None), and returns a scalar tensor.

    Attributes:
        name: key of `OBJECTIVES`, or the user's `file.py:function`.
        fitness: larger is better.
        loss: differentiable in the outputs, smaller is better; None for a black box.
        agreement: agreement with the dense network, 1 is perfect.
        needs_labels: whether fitness and loss need labels.
    """

    name: str
    fitness: Metric
    loss: Metric | None
    agreement: Metric
    needs_labels: bool = False

    def score(self, outputs: Tensor, teacher: Tensor, labels: Tensor | None) -> float:
        """Return the fitness as a finite number; see `finite`."""
        return finite(float(self.fitness(outputs, teacher, labels)))


def finite(value: float) -> float:
    """Return `value`, or `WORST` if it is NaN, infinite or smaller than `WORST`."""
    return max(value, WORST) if math.isfinite(value) else WORST


def kl_divergence(outputs: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return KL(teacher ‖ outputs) of sharpened predictions in nats; classes on axis 1."""
    # Both sides are sharpened by the same factor, like a temperature of 1/SHARPNESS
    # (Hinton et al. 2015).
    log_teacher = functional.log_softmax(SHARPNESS * teacher, dim=1)
    log_outputs = functional.log_softmax(SHARPNESS * outputs, dim=1)
    return (log_teacher.exp() * (log_teacher - log_outputs)).sum(dim=1).mean()


def token_divergence(outputs: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return KL(teacher ‖ outputs) of the distributions over tokens, in nats; tokens on axis 1."""
    log_teacher, log_outputs = (functional.log_softmax(x, dim=1) for x in (teacher, outputs))
    return (log_teacher.exp() * (log_teacher - log_outputs)).sum(dim=1).mean()


def scaled_kl(outputs: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return `kl_divergence` of logits `[N, classes]` scaled to the spread of the teacher's.

    No decision depends on the scale. Pruning shrinks logits, up to 13 times, and steps that restore
    the scale give up decisions: of inputs far from the domain, only these carry over.
    """
    outputs, target = (x - x.mean(1, keepdim=True) for x in (outputs, teacher))
    squares = outputs.square().mean().clamp_min(1e-12)  # of equal logits
    return kl_divergence((target.square().mean() / squares).sqrt() * outputs, target)


def agreement(outputs: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return the fraction of inputs with the same predicted class; classes on axis 1."""
    # float64: a mean of many 0s and 1s is then exact enough to compare with a threshold.
    return (outputs.argmax(1) == teacher.argmax(1)).double().mean()


def accuracy(outputs: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return the fraction of inputs whose predicted class is the label."""
    return (outputs.argmax(1) == _required(labels)).double().mean()


def cross_entropy(outputs: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return the cross-entropy of sharpened predictions with the labels, mean over N."""
    return functional.cross_entropy(SHARPNESS * outputs, _required(labels))


def relative_error(outputs: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return ‖outputs − teacher‖² ÷ ‖teacher − its mean‖²: 0 is perfect, 1 equals the mean."""
    # clamp_min below: a constant teacher would give 0 ÷ 0.
    spread = (teacher - teacher.mean(0, keepdim=True)).square().sum()
    return (outputs - teacher).square().sum() / spread.clamp_min(torch.finfo(spread.dtype).tiny)


def _required(labels: Tensor | None) -> Tensor:
    if labels is None:
        raise InputError(
            "objective: 'accuracy' needs labelled calibration inputs; use "
            "--calibration=labelled:FILE"
        )
    return labels


def _negative(metric: Metric) -> Metric:
    return lambda outputs, teacher, labels: -metric(outputs, teacher, labels)


def _explained_variance(outputs: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
    return (1 - relative_error(outputs, teacher, labels)).clamp_min(0)


OBJECTIVES: dict[str, Objective] = {
    "kl": Objective("kl", _negative(kl_divergence), kl_divergence, agreement),
    "scaled-kl": Objective("scaled-kl", _negative(scaled_kl), scaled_kl, agreement),
    "agreement": Objective("agreement", agreement, kl_divergence, agreement),
    "accuracy": Objective("accuracy", accuracy, cross_entropy, agreement, needs_labels=True),
    "logits": Objective("logits", _negative(relative_error), relative_error, agreement),
    "relative-error": Objective(
        "relative-error", _negative(relative_error), relative_error, _explained_variance
    ),
}
AUTO = "auto"


def _at_every_token(metric: Metric) -> Metric:
    """Return a metric of classes on axis 1 for distributions over tokens, `[N, L, vocabulary]`."""

    def metric_of_tokens(outputs: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
        return metric(outputs.flatten(0, 1), teacher.flatten(0, 1), labels)

    return metric_of_tokens


_TOKEN_AGREEMENT, _TOKEN_LOSS = _at_every_token(agreement), _at_every_token(token_divergence)
TOKEN_OBJECTIVES: dict[str, Objective] = {
    "kl": Objective("kl", _negative(_TOKEN_LOSS), _TOKEN_LOSS, _TOKEN_AGREEMENT),
    "agreement": Objective("agreement", _TOKEN_AGREEMENT, _TOKEN_LOSS, _TOKEN_AGREEMENT),
}
"""The objectives of classes for networks that return a distribution over tokens at each place."""


def find_objective(name: str, teacher: Tensor, vocabulary: int = 0) -> Objective:
    """Return an objective by name, checked against the shape of the teacher's outputs `[N, …]`.

    The name is `auto` (`kl` for logits `[N, classes]` and for those of a language model,
    `[N, L, vocabulary]`, else `relative-error`), a key of `OBJECTIVES`, the name of a plug-in, or
    `path/to/file.py:function` with the signature `(outputs, teacher, labels) -> float` on CPU
    tensors, larger is better. `vocabulary` is the number of token ids, 0 for other inputs.

    Raises:
        InputError: an unknown name, or an objective for classes on outputs without classes.
    """
    tokens = bool(vocabulary) and teacher.ndim == 3 and teacher.shape[2] == vocabulary
    if tokens and name in (AUTO, *TOKEN_OBJECTIVES):
        return TOKEN_OBJECTIVES["kl" if name == AUTO else name]
    classes = teacher.ndim >= 2 and teacher.shape[1] >= 2
    if name == AUTO:
        return OBJECTIVES["kl" if classes and teacher.ndim == 2 else "relative-error"]
    # Agreement is independent of the objective, so that results are comparable.
    agreement_of = OBJECTIVES["kl" if classes else "relative-error"].agreement
    agreement_of = _TOKEN_AGREEMENT if tokens else agreement_of
    if ":" in name:
        return black_box(name, load_function(name, "objective"), agreement_of)
    objective = OBJECTIVES.get(name)
    if objective is None:
        objective = plugins.find_plugin(
            plugins.OBJECTIVES, name, partial(read_objective, agreement_of)
        )
    if objective is None:
        added = plugins.plugin_names(plugins.OBJECTIVES, OBJECTIVES)
        raise unknown_name("objective", name, [*OBJECTIVES, *added, AUTO, "FILE.py:FUNCTION"])
    if objective.agreement is agreement and not classes:
        raise InputError(
            f"objective: {name!r} compares classes, but the network's outputs have shape "
            f"{tuple(teacher.shape)}; use 'relative-error' or a FILE.py:FUNCTION"
        )
    return objective


def read_objective(agreement_of: Metric, plugin: plugins.Plugin, loaded: Any) -> Objective:  # noqa: ANN401
    """Return the objective of a plug-in: an `Objective` or a function, otherwise `InputError`."""
    if isinstance(loaded, Objective):
        return replace(loaded, name=plugin.name)
    return black_box(plugin.name, plugins.require_function(plugin, loaded), agreement_of)


def black_box(spec: str, function: Callable[..., Any], agreement_of: Metric) -> Objective:
    """Return the objective of a user's function, without a loss for gradients."""

    def fitness(outputs: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        arguments = (None if x is None else x.cpu() for x in (outputs, teacher, labels))
        value = call_user(function, *arguments, where=f"objective: {spec}")
        # Not float32: a user's count of many inputs may need more than 24 bits.
        try:
            return torch.tensor(float(value), dtype=torch.float64)
        # RuntimeError: a tensor with several elements
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"objective: {spec} must return one number, got {type(value).__name__}"
            ) from error

    return Objective(spec, fitness, None, agreement_of)
