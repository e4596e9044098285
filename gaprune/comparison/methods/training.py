"""Train a network on labels or on the dense network's outputs; pruned weights stay exactly zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, Optimizer

from gaprune.calibration.samples import Samples
from gaprune.errors import GapruneError, InputError, unknown_name
from gaprune.evaluation.objectives import AUTO, find_objective
from gaprune.masks.supermask import check_mask
from gaprune.models.forward import batched_forward
from gaprune.models.target import Target

DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda _done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}
"""Fraction of the steps done → factor of the learning rate (Loshchilov and Hutter 2017, eq. 5)."""


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Raises:
        InputError: an unknown name, or a number outside its range.
    """

    optimiser: str = "adam"  # a key of `OPTIMISERS`
    learning_rate: float = 1e-3  # step size at the start
    batch: int = 128  # inputs per step
    weight_decay: float = 0.0  # factor of the L2 penalty's gradient
    momentum: float = 0.9  # of `sgd`; `adam` has its own
    decay: str = "constant"  # a key of `DECAYS`: how the learning rate falls during training

    def __post_init__(self) -> None:
        if self.optimiser not in OPTIMISERS:
            raise unknown_name("optimiser", self.optimiser, OPTIMISERS)
        if self.decay not in DECAYS:
            raise unknown_name("decay", self.decay, DECAYS)
        if self.batch < 1:
            raise InputError(f"batch: must be at least 1, got {self.batch}")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning_rate: must be above 0 and finite, got {self.learning_rate}")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"weight_decay: must be 0 or more, got {self.weight_decay}")
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum: must be 0 or more and below 1, got {self.momentum}")


def _adam(weights: Sequence[nn.Parameter], options: TrainingOptions) -> Optimizer:
    # one fused kernel for all parameters: three times faster on the CPU
    fused = all(weight.device.type in {"cpu", "cuda"} for weight in weights)
    return Adam(weights, options.learning_rate, weight_decay=options.weight_decay, fused=fused)


def _sgd(weights: Sequence[nn.Parameter], options: TrainingOptions) -> Optimizer:
    decay = options.weight_decay
    return SGD(weights, options.learning_rate, options.momentum, weight_decay=decay)


OPTIMISERS: dict[str, Callable[[Sequence[nn.Parameter], TrainingOptions], Optimizer]] = {
    "adam": _adam,  # Kingma and Ba 2015, algorithm 1
    "sgd": _sgd,
}


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What a network is trained on.

    Attributes:
        loss: `(outputs, answers)` of a batch → a scalar to minimise.

    Raises:
        InputError: no inputs, or a different number of answers.
    """

    inputs: Tensor  # `[N, ...]` as the network takes them
    answers: Tensor  # int64 labels `[N]`, or the teacher's outputs `[N, ...]`
    loss: Callable[[Tensor, Tensor], Tensor]

    def __post_init__(self) -> None:
        inputs, answers = len(self.inputs), len(self.answers)
        if inputs != answers or not inputs:
            raise InputError(
                "training data: needs at least one input and one answer for each, got "
                f"{inputs} and {answers}"
            )


def from_labels(samples: Samples) -> TrainingData:
    """Return training data whose loss is the cross-entropy with the labels."""
    if samples.labels is None:
        raise InputError(
            f"training data: needs labelled inputs, and {samples.source} has none; "
            "give labelled:FILE, or train on the dense network's outputs instead"
        )
    return TrainingData(samples.inputs, samples.labels, label_loss)


def from_teacher(target: Target, inputs: Tensor) -> TrainingData:
    """Return training data whose loss is the distance from the dense network's outputs.

    For logits `[N, classes]` it is KL(teacher ‖ network) of the softmax predictions, at
    temperature 1 (Hinton et al. 2015, section 2). For other outputs it is the mean squared error
    over the teacher's variance, as in `objectives.relative_error`.
    """
    if len(inputs) == 0:
        raise InputError("training data: needs inputs and got none; give some")
    inputs = inputs.to(target.device)
    teacher = batched_forward(target.model, inputs)
    if find_objective(AUTO, teacher).name == "kl":
        return TrainingData(inputs, teacher, teacher_loss)
    # the variance over all inputs: that of one batch could be zero
    variance = float((teacher - teacher.mean(0, keepdim=True)).square().mean())
    return TrainingData(inputs, teacher, partial(relative_loss, variance=variance or 1.0))


def label_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats, mean over the batch."""
    try:  # on CUDA, labels outside the classes give CUDA's own error
        return functional.cross_entropy(outputs, labels)
    except IndexError as error:
        raise InputError(
            f"training data: labels must be classes of the network, whose outputs have shape "
            f"{list(outputs.shape)}; got {int(labels.min())} to {int(labels.max())}"
        ) from error


def teacher_loss(outputs: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ outputs) of softmax predictions in nats, mean over the batch."""
    return functional.kl_div(
        functional.log_softmax(outputs, dim=1),
        functional.log_softmax(teacher, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def relative_loss(outputs: Tensor, teacher: Tensor, *, variance: float) -> Tensor:
    """Mean squared error over the teacher's variance."""
    return functional.mse_loss(outputs, teacher) / variance


def train(  # noqa: PLR0913 # what training depends on, each by its own name
    model: nn.Module,
    data: TrainingData,
    options: TrainingOptions,
    epochs: float,
    generator: torch.Generator,
    *,
    masks: Mapping[str, Tensor] | None = None,
    penalty: Callable[[nn.Module], Tensor] | None = None,
    on_epoch: Callable[[float], None] = lambda _epochs: None,
) -> None:
    """Train `model` in place with a new optimiser; it ends in evaluation mode.

    Args:
        model: its parameters require gradients (`trainable_copy`).
        data: shuffled every epoch. The last short batch of an epoch is dropped, unless it is the
            only one.
        options: optimiser, learning rate and batch size.
        epochs: passes over the data, 0 or more; 0.2 is a fifth of the batches, at least one.
        generator: decides the order and what dropout drops; no global state is used or changed.
        masks: parameter name → bool, False where the weight is pruned. Pruned weights are set to
            0 (never −0) at the start and after every step.
        penalty: is added to the loss.
        on_epoch: receives the epochs done, after each and at the end.

    Raises:
        InputError: a parameter or an argument that does not fit (the message says which).
        GapruneError: the loss or a parameter is not finite.
    """
    if not 0 <= epochs < math.inf:
        raise InputError(f"epochs: must be 0 or more and finite, got {epochs}")
    pruned = _pruned_positions(model, masks or {})
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not weights:
        raise InputError("model: no parameter requires gradients; train a trainable_copy of it")
    optimiser = OPTIMISERS[options.optimiser](weights, options)
    batch = min(options.batch, len(data.inputs))  # small data sets are one batch
    per_epoch = len(data.inputs) // batch
    steps = max(round(epochs * per_epoch), int(epochs > 0))  # at least one step, unless epochs is 0
    order = torch.empty(0, dtype=torch.int64)
    _zero(pruned)
    model.train()
    try:
        with _seeded_globals(weights[0].device, generator):
            for step in range(steps):
                for group in optimiser.param_groups:
                    group["lr"] = options.learning_rate * DECAYS[options.decay](step / steps)
                start = step % per_epoch * batch
                if start == 0:  # a new epoch: shuffle
                    order = torch.randperm(len(data.inputs), generator=generator)
                inputs, expected = _batch(data, order[start : start + batch], weights[0])
                optimiser.zero_grad()
                loss = data.loss(_outputs(model, inputs), expected)
                if penalty is not None:
                    loss = loss + penalty(model)
                _check_finite("loss", loss.detach(), options, step)
                loss.backward()
                optimiser.step()
                _zero(pruned)  # momentum and weight decay move pruned weights, too
                if (step + 1) % per_epoch == 0 or step + 1 == steps:
                    on_epoch((step + 1) / per_epoch)
    finally:
        optimiser.zero_grad()
        model.eval()  # BatchNorm uses its running statistics again
    for name, parameter in model.named_parameters():  # the last step may overflow unseen
        _check_finite(f"parameter {name!r}", parameter.detach(), options, steps)


def _batch(data: TrainingData, index: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    # on the device of the network; floating inputs in its dtype
    inputs, expected = (
        values.index_select(0, index.to(values.device)).to(like.device)
        for values in (data.inputs, data.answers)
    )
    return inputs.to(like.dtype) if inputs.is_floating_point() else inputs, expected


def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    outputs = model(inputs)
    if not isinstance(outputs, Tensor):
        raise InputError(
            f"model: in training mode its output must be one tensor, got {type(outputs).__name__}; "
            "wrap the network so that forward returns the logits alone"
        )
    return outputs


def _check_finite(what: str, values: Tensor, options: TrainingOptions, step: int) -> None:
    if not values.isfinite().all():
        raise GapruneError(
            f"training: {what} is not finite after {step} steps of {options.optimiser} at "
            f"learning rate {options.learning_rate:g}; use a lower rate, or check the inputs for "
            "NaN"
        )


def _pruned_positions(model: nn.Module, masks: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return each masked parameter's values, detached, and where they are pruned."""
    parameters = dict(model.named_parameters())
    positions = []
    for name, mask in masks.items():
        if name not in parameters:
            raise InputError(f"masks: {name!r} is no parameter of the model")
        weight = parameters[name].detach()
        check_mask(f"masks[{name!r}]", mask, weight.shape)
        positions.append((weight, ~mask.to(weight.device)))
    return positions


def _zero(pruned: Sequence[tuple[Tensor, Tensor]]) -> None:
    for weight, positions in pruned:
        weight.masked_fill_(positions, 0)  # +0: multiplying by the mask may give −0


@contextmanager
def _seeded_globals(device: torch.device, generator: torch.Generator) -> Iterator[None]:
    """Seed torch's global generators from `generator`, and restore them at the end.

    Dropout draws from the global generators, so its draws must depend on the run's seed, too.
    """
    cuda = [device] if device.type == "cuda" else []
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for cuda_device in cuda:
            with torch.cuda.device(cuda_device):
                torch.cuda.manual_seed(seed)
        yield
