"""What a network is trained on: labels, or what the dense network answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from torch.nn import functional

from gaprune.calibration.samples import Samples
from gaprune.errors import InputError
from gaprune.evaluation.objectives import AUTO, find_objective
from gaprune.models.forward import batched_forward
from gaprune.models.target import Target

Loss = Callable[[Tensor, Tensor], Tensor]
"""`(outputs, answers)` of one batch → a scalar; smaller is better."""


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What a network is trained on.

    Attributes:
        inputs: `[N, ...]` as the network takes them.
        answers: int64 labels `[N]`, or the teacher's outputs `[N, ...]`.
        loss: what training makes small.

    Raises:
        InputError: no inputs, or not as many answers.
    """

    inputs: Tensor
    answers: Tensor
    loss: Loss

    def __post_init__(self) -> None:
        inputs, wanted = len(self.inputs), len(self.answers)
        if inputs != wanted or not inputs:
            raise InputError(
                f"lessons: there must be inputs and as many answers, got {inputs} and {wanted}"
            )


def from_labels(samples: Samples) -> TrainingData:
    """Return lessons that ask for the labels: cross-entropy.

    Raises:
        InputError: there are no inputs, or they have no labels.
    """
    if samples.labels is None:
        raise InputError(
            f"lessons: training on labels needs labelled inputs, and {samples.source} has none; "
            "give labelled:FILE, or train on the dense network's outputs instead"
        )
    return TrainingData(samples.inputs, samples.labels, label_loss)


def from_teacher(target: Target, inputs: Tensor) -> TrainingData:
    """Return lessons that ask for what the dense network answers.

    For logits `[N, classes]` the loss is KL(teacher ‖ network) of the softmax predictions, at
    temperature 1 (Hinton et al. 2015, section 2). For other outputs it is the mean squared error
    over the teacher's variance, as in `objectives.relative_error`, with the variance of all the
    data: that of one batch could be zero.

    Args:
        target: the dense network.
        inputs: `[N, ...]` as it takes them.

    Raises:
        InputError: there are no inputs.
    """
    if len(inputs) == 0:
        raise InputError("lessons: training needs inputs and got none; give some")
    inputs = inputs.to(target.device)
    teacher = batched_forward(target.model, inputs)
    if find_objective(AUTO, teacher).name == "kl":
        return TrainingData(inputs, teacher, teacher_loss)
    variance = float((teacher - teacher.mean(0, keepdim=True)).square().mean())
    return TrainingData(inputs, teacher, partial(relative_loss, variance=variance or 1.0))


def label_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats, mean over the batch.

    Raises:
        InputError: a label outside the network's classes (found on the CPU; CUDA reports its own).
    """
    try:
        return functional.cross_entropy(outputs, labels)
    except IndexError as error:
        raise InputError(
            f"lessons: labels must be classes of the network, whose outputs have shape "
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
