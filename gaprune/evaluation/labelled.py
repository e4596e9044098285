"""Inputs with labels: what accuracy is measured on, and what fine-tuning is taught with."""

from __future__ import annotations

from collections.abc import Callable

from gaprune.calibration.files import read_samples
from gaprune.calibration.samples import Samples
from gaprune.errors import InputError
from gaprune.models.target import Target
from gaprune.models.zoo import mnist


def read_labelled(argument: str, text: str, target: Target) -> Samples:
    """Read a labelled file for a target.

    Args:
        argument: what the user calls it (`test`, `train`); messages begin with it.
        text: the file, see `read_samples`.
        target: what the inputs must fit.

    Raises:
        InputError: no such file, content that does not fit the network, or no labels.
    """
    try:
        samples = read_samples(text, target.inputs)
    except InputError as error:
        raise InputError(f"{argument}: {str(error).removeprefix('calibration: ')}") from error
    if samples.labels is None:
        raise InputError(
            f"{argument}: {text} holds no labels; give a file with both inputs and labels "
            "(npz keys x and y, or IMAGES+LABELS)"
        )
    return check_labelled(argument, samples, target)


def check_labelled(argument: str, samples: Samples, target: Target) -> Samples:
    """Return labelled samples as the target takes them, or refuse them before any work.

    Returns:
        Inputs in the dtype of the network (tokens as they are), int64 labels.

    Raises:
        InputError: no labels, labels that are no integers, other shapes, or nothing at all.
    """
    labels = samples.labels
    if labels is None or labels.shape != samples.inputs.shape[:1] or labels.is_floating_point():
        came = "none" if labels is None else f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise InputError(
            f"{argument}: needs one integer label for each of the {len(samples.inputs)} inputs, "
            f"got {came}"
        )
    check_inputs(argument, samples, target)
    floating = target.inputs.kind != "tokens"
    inputs = samples.inputs.to(target.dtype) if floating else samples.inputs
    return Samples(inputs, labels.long(), samples.source)


def check_inputs(argument: str, samples: Samples, target: Target) -> None:
    """Refuse inputs of another shape than the target takes, and none at all.

    Raises:
        InputError: they do not fit.
    """
    if tuple(samples.inputs.shape[1:]) != target.inputs.shape or not len(samples.inputs):
        raise InputError(
            f"{argument}: needs inputs of shape [N, {', '.join(map(str, target.inputs.shape))}], "
            f"got {tuple(samples.inputs.shape)}"
        )


def zoo_test(target: Target) -> Samples | None:
    """Return the carried test set of a zoo network, or None for any other."""
    return _zoo_data(target, mnist.test_set, "the MNIST test set")


def zoo_train(target: Target) -> Samples | None:
    """Return the carried training set of a zoo network, or None for any other."""
    return _zoo_data(target, mnist.train_set, "the MNIST training set")


def _zoo_data(
    target: Target, load: Callable[[], mnist.LabelledImages], source: str
) -> Samples | None:
    if target.zoo is None:
        return None
    images, labels = load()
    return Samples(images.to(target.dtype), labels, source)
