"""Labelled inputs, for measuring accuracy and for fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from gaprune.calibration.files import fit_samples, read_samples
from gaprune.calibration.in_memory import read_data
from gaprune.calibration.samples import Samples
from gaprune.errors import InputError, about
from gaprune.models.forward import batched_forward
from gaprune.models.target import Target
from gaprune.models.zoo import mnist


def read_labelled(argument: str, data: object, target: Target) -> Samples:
    """Read a labelled file (see `read_samples`), or data in memory (`read_data`), for a target.

    Raises:
        InputError: the file does not exist, does not fit the network, or has no labels. Messages
            begin with `argument`, the user's name for it.
    """
    _check_one_argument(argument, target)
    spec = target.inputs
    try:
        if isinstance(data, (str, Path)):
            text = str(data)
            samples = read_samples(text, spec)
        else:
            text = f"the data given as {argument}="
            arrays = read_data(argument, data, labelled=True)
            samples = fit_samples(arrays, spec, text, normalised=True)
    except InputError as error:
        # read_samples calls every file "calibration"; the user knows it by another name.
        raise about(argument, error) from error
    if samples.labels is None:
        raise InputError(
            f"{argument}: {text} has no labels; give a file with inputs and labels (npz keys x and "
            "y, or IMAGES+LABELS); in Python also a pair (inputs, labels) or a DataLoader"
        )
    return check_labelled(argument, samples, target)


def is_language_model(target: Target) -> bool:
    """Return whether a target predicts the next token, so that a text tests it."""
    return target.inputs.text is not None and bool(target.inputs.text.packs)


def read_test(data: object, target: Target) -> Samples:
    """Read test data: a text for a causal language model, else labelled inputs.

    Raises:
        InputError: as `read_labelled`.
    """
    if is_language_model(target) and isinstance(data, (str, Path)):
        try:
            samples = read_samples(str(data), target.inputs)
        except InputError as error:
            raise about("test", error) from error
        return samples._replace(labels=None)
    return read_labelled("test", data, target)


def check_test(samples: Samples, target: Target) -> Samples:
    """Return test data as `check_labelled` does; a text for a language model has no labels."""
    if not is_language_model(target):
        return check_labelled("test", samples, target)
    if samples.labels is not None:
        raise InputError(
            f"test: {samples.source} holds labels, and a language model is tested by the text "
            "itself; give a text (.txt) or token ids without labels"
        )
    check_inputs("test", samples, target)
    return samples


def check_labelled(argument: str, samples: Samples, target: Target) -> Samples:
    """Return labelled samples with inputs in the dtype of the network and int64 labels.

    Raises:
        InputError: missing labels, labels that are no classes of the outputs, wrong shapes, or no
            inputs.
    """
    _check_one_argument(argument, target)
    labels = samples.labels
    if labels is None or labels.shape != samples.inputs.shape[:1] or labels.is_floating_point():
        given = "none" if labels is None else f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise InputError(
            f"{argument}: needs one integer label for each of the {len(samples.inputs)} inputs, "
            f"got {given}"
        )
    shape = target.inputs.shape
    if target.inputs.kind == "image" and tuple(samples.inputs.shape[1:]) == (math.prod(shape),):
        samples = samples._replace(inputs=samples.inputs.reshape(-1, *shape))  # flat pictures
    check_inputs(argument, samples, target)
    # Token ids index an embedding and must stay integers.
    floating = target.inputs.kind != "tokens"
    inputs = samples.inputs.to(target.dtype) if floating else samples.inputs
    check_classes(argument, labels, batched_forward(target.model, inputs[:1].to(target.device)))
    return Samples(inputs, labels.long(), samples.source)


def _check_one_argument(argument: str, target: Target) -> None:
    if target.inputs.examples:
        raise InputError(
            f"{argument}: labelled data needs one tensor per input, and this network takes several "
            "arguments; leave it out: the agreement with the dense network is measured"
        )


def check_classes(argument: str, labels: Tensor, outputs: Tensor) -> None:
    """Raise `InputError` if integer labels `[N]` are not classes of outputs `[N, classes]`."""
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        shape = ", ".join(["N", *map(str, outputs.shape[1:])])
        raise InputError(
            f"{argument}: labels are classes, and this network returns [{shape}], not "
            "[N, classes]; without labels the agreement with the dense network is measured"
        )
    lowest, highest = (int(value) for value in labels.aminmax())
    if lowest < 0 or highest >= outputs.shape[1]:
        raise InputError(
            f"{argument}: labels must be from 0 to {outputs.shape[1] - 1}, the classes of this "
            f"network, got {lowest} to {highest}"
        )


def check_inputs(argument: str, samples: Samples, target: Target) -> None:
    """Raise `InputError` if there are no inputs, or their shape is not the target's."""
    if tuple(samples.inputs.shape[1:]) != target.inputs.shape or not len(samples.inputs):
        raise InputError(
            f"{argument}: needs inputs of shape [N, {', '.join(map(str, target.inputs.shape))}], "
            f"got {tuple(samples.inputs.shape)}"
        )


def zoo_test(target: Target) -> Samples | None:
    """Return the bundled test set of a zoo network, or None for other networks."""
    return _zoo_samples(target, mnist.test_set, "the MNIST test set")


def zoo_train(target: Target) -> Samples | None:
    """Return the bundled training set of a zoo network, or None for other networks."""
    return _zoo_samples(target, mnist.train_set, "the MNIST training set")


def _zoo_samples(
    target: Target, load: Callable[[], mnist.LabelledImages], source: str
) -> Samples | None:
    if target.zoo is None:
        return None
    images, labels = load()
    return Samples(images.to(target.dtype), labels, source)
