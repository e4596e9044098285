"""Training a network on inputs with answers, dropped weights held at exactly zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from gaprune.comparison.methods.training_data import TrainingData, from_labels, from_teacher
from gaprune.errors import GapruneError, InputError, unknown_name
from gaprune.masks.supermask import check_mask

__all__ = [
    "DECAYS",
    "OPTIMISERS",
    "TrainingData",
    "TrainingOptions",
    "from_labels",
    "from_teacher",
    "train",
]

DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda _done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}
"""Part of a call's steps that are done → factor on the rate (Loshchilov and Hutter 2017, eq. 5)."""


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Attributes:
        optimiser: a key of `OPTIMISERS`.
        learning_rate: step size at the start of a call.
        batch: inputs per step.
        weight_decay: factor of the squared weights' gradient (L2).
        momentum: of `sgd`; `adam` has its own.
        decay: a key of `DECAYS`: how the rate falls over one call.

    Raises:
        InputError: an unknown name, or a number outside its range.
    """

    optimiser: str = "adam"
    learning_rate: float = 1e-3
    batch: int = 128
    weight_decay: float = 0.0
    momentum: float = 0.9
    decay: str = "constant"

    def __post_init__(self) -> None:
        if self.optimiser not in OPTIMISERS:
            raise unknown_name("optimiser", self.optimiser, OPTIMISERS)
        if self.decay not in DECAYS:
            raise unknown_name("decay", self.decay, DECAYS)
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"rate: must be above 0 and finite, got {self.learning_rate}")
        if self.batch < 1:
            raise InputError(f"batch: must be at least 1, got {self.batch}")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"weight_decay: must be 0 or more, got {self.weight_decay}")
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum: must be 0 or more and below 1, got {self.momentum}")


def _adam(weights: Sequence[nn.Parameter], how: TrainingOptions) -> Optimizer:
    return Adam(weights, how.learning_rate, weight_decay=how.weight_decay, fused=_can_fuse(weights))


def _sgd(weights: Sequence[nn.Parameter], how: TrainingOptions) -> Optimizer:
    return SGD(weights, how.learning_rate, how.momentum, weight_decay=how.weight_decay)


OPTIMISERS: dict[str, Callable[[Sequence[nn.Parameter], TrainingOptions], Optimizer]] = {
    "adam": _adam,  # Kingma and Ba 2015, algorithm 1
    "sgd": _sgd,
}


def _can_fuse(weights: Sequence[nn.Parameter]) -> bool:
    """Tell whether Adam can update all in one kernel: on the CPU three times faster than apart."""
    return all(weight.device.type in {"cpu", "cuda"} for weight in weights)


def train(  # noqa: PLR0913 # what training depends on, each by its own name
    model: nn.Module,
    data: TrainingData,
    how: TrainingOptions,
    epochs: float,
    generator: torch.Generator,
    *,
    masks: Mapping[str, Tensor] | None = None,
    penalty: Callable[[nn.Module], Tensor] | None = None,
    on_epoch: Callable[[float], None] | None = None,
) -> None:
    """Train `model` in place with an optimiser of its own; it ends in evaluation mode.

    Args:
        model: its parameters take gradients (`trainable_copy`).
        data: shown in a new random order every epoch. The last short batch of an epoch is
            left out, unless it is the only one.
        how: optimiser, rate and batch.
        epochs: passes over the lessons, 0 or more; 0.2 is a fifth of the batches,
            and at least one of them.
        generator: decides the order, and what dropout drops; nothing global is used or moved.
        masks: parameter name → bool, False where the weight is dropped: dropped weights are set to
            0 (never −0) at the start and after every step.
        penalty: is added to the loss.
        on_epoch: is told the epochs done, after each and at the end.

    Raises:
        InputError: a parameter or an argument that does not fit (the message says which).
        GapruneError: the loss is not finite.
    """
    if not 0 <= epochs < math.inf:
        raise InputError(f"epochs: must be 0 or more and finite, got {epochs}")
    dropped = _dropped(model, masks or {})
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not weights:
        raise InputError("model: no parameter takes gradients; train a trainable_copy of it")
    optimiser = OPTIMISERS[how.optimiser](weights, how)
    order = _Order(data, how.batch, generator)
    steps = max(round(epochs * order.per_epoch), int(epochs > 0))
    _zero(dropped)
    model.train()
    try:
        with _own_chance(weights[0].device, generator):
            for step in range(steps):
                _set_rate(optimiser, how.learning_rate * DECAYS[how.decay](step / steps))
                inputs, wanted = order.batch_of(step, weights[0])
                optimiser.zero_grad()
                loss = data.loss(_outputs(model, inputs), wanted)
                if penalty is not None:
                    loss = loss + penalty(model)
                _check_finite("loss", loss.detach(), how, step)
                loss.backward()
                optimiser.step()
                _zero(dropped)
                if on_epoch is not None and order.ends_epoch(step, steps):
                    on_epoch((step + 1) / order.per_epoch)
    finally:
        optimiser.zero_grad()
        model.eval()
    for name, parameter in model.named_parameters():
        _check_finite(f"parameter {name!r}", parameter.detach(), how, steps)


def _set_rate(optimiser: Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


class _Order:
    """Batches of lessons, in a new order every epoch."""

    def __init__(self, data: TrainingData, batch: int, generator: torch.Generator) -> None:
        self.data = data
        self.batch = min(batch, len(data.inputs))
        self.per_epoch = len(data.inputs) // self.batch
        self.generator = generator
        self.order = torch.empty(0, dtype=torch.int64)

    def ends_epoch(self, step: int, steps: int) -> bool:
        """Tell whether an epoch, or the whole call of so many steps, ends with this step."""
        return (step + 1) % self.per_epoch == 0 or step + 1 == steps

    def batch_of(self, step: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inputs and answers of a step, on the device and in the dtype of `like`."""
        place = step % self.per_epoch
        if place == 0:
            self.order = torch.randperm(len(self.data.inputs), generator=self.generator)
        index = self.order[place * self.batch : (place + 1) * self.batch]
        inputs, wanted = (
            values.index_select(0, index.to(values.device)).to(like.device)
            for values in (self.data.inputs, self.data.answers)
        )
        return inputs.to(like.dtype) if inputs.is_floating_point() else inputs, wanted


def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    outputs = model(inputs)
    if not isinstance(outputs, Tensor):
        raise InputError(
            f"model: in training mode its output must be one tensor, got {type(outputs).__name__}; "
            "wrap the network so that forward returns the logits alone"
        )
    return outputs


def _check_finite(what: str, values: Tensor, how: TrainingOptions, step: int) -> None:
    if not values.isfinite().all():
        raise GapruneError(
            f"training: {what} is not finite after {step} steps of {how.optimiser} at rate "
            f"{how.learning_rate:g}; use a lower rate, or check the inputs for NaN"
        )


def _dropped(model: nn.Module, masks: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return each masked parameter's values, detached, and where they are dropped."""
    parameters = dict(model.named_parameters())
    found = []
    for name, mask in masks.items():
        if name not in parameters:
            raise InputError(f"masks: {name!r} is no parameter of the model")
        weight = parameters[name].detach()
        check_mask(f"masks[{name!r}]", mask, weight.shape)
        found.append((weight, ~mask.to(weight.device)))
    return found


def _zero(dropped: Sequence[tuple[Tensor, Tensor]]) -> None:
    for weight, gone in dropped:
        weight.masked_fill_(gone, 0)


@contextmanager
def _own_chance(device: torch.device, generator: torch.Generator) -> Iterator[None]:
    """Let layers that draw from torch's global generators (dropout) follow `generator` instead."""
    cuda = [device] if device.type == "cuda" else []
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for place in cuda:
            with torch.cuda.device(place):
                torch.cuda.manual_seed(seed)
        yield
