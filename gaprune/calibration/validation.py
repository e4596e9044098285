"""What judges the candidates: a part of a file, a generator of its own, a part of what was made."""

from __future__ import annotations

import torch

from gaprune.calibration.generators.mixture import GeneratorMixture
from gaprune.calibration.parse import AUTO, CalibrationFile, available_generators, parse_file
from gaprune.calibration.samples import Samples, concatenate
from gaprune.errors import InputError
from gaprune.models.target import Target

VALIDATION_FRACTION = 0.2  # of a file, or of inverted inputs, held out to judge
Held = list[tuple[str, Samples]]  # level, inputs


def validation_file(validation: str, target: Target) -> CalibrationFile:
    """Return the file that a validation names which is no generator.

    Raises:
        InputError: it is no path either.
    """
    return parse_file("validation", validation, [AUTO, *available_generators(target.inputs)])


def split_validation(
    judge: str | None, count: int, held: Held, target: Target, generator: torch.Generator
) -> tuple[Samples, Held]:
    """Make the validation inputs set: a part of the first file, a generator's inputs, or a file of its own.

    Args:
        judge: a generator or a file; None holds out a part of the first of `held`.
        count: inputs that judge, at most.
        held: the files' inputs.
        target: the network that they are shown to.
        generator: draws and shuffles.

    Returns:
        The validation, and what is left of `held`.

    Raises:
        InputError: a file of one input, or one that does not fit the network.
    """
    spec = target.inputs
    if judge is None:
        level, samples = held[0]
        if len(samples.inputs) < 2:
            raise InputError(
                f"calibration inputs: {samples.source} must hold at least 2 inputs, one to search on and one "
                f"to judge on; got {len(samples.inputs)}"
            )
        validation, rest = _hold_out(samples, count, generator)
        return validation, [(level, rest), *held[1:]]
    if judge in available_generators(spec):
        inputs = GeneratorMixture(spec, {judge: 1.0}, target.dtype).draw(count, generator)
        return Samples(inputs, None, f"generated: {judge}, from another seed"), held
    samples = validation_file(judge, target).read(spec).to(target.dtype)
    return samples.take(samples.random_order(generator)[:count]), held


def mix_validation(
    made: Samples, validation: Samples, generator: torch.Generator
) -> tuple[Samples, Samples]:
    """Judge half by inputs like those that search, half by a generator.

    Inputs of one making share its flaws, so a part of them alone would judge too kindly.

    Args:
        made: inverted inputs; a fifth of them, at most half of the validation inputs, is held out.
        validation: generated inputs; as many of them stay.
        generator: picks.

    Returns:
        The validation and the rest of `made`; both as they came where one is too small to be parted.
    """
    if min(len(made.inputs), len(validation.inputs)) < 2:
        return validation, made
    held, rest = _hold_out(made, len(validation.inputs) // 2, generator)
    beside = validation.take(torch.arange(len(held.inputs)))
    source = f"{held.source}, and as many {validation.source}"
    mixed = concatenate([held, beside])
    assert mixed is not None
    return mixed._replace(source=source), rest


def _hold_out(samples: Samples, count: int, generator: torch.Generator) -> tuple[Samples, Samples]:
    """Return a random part, a fifth and `count` inputs at most, and the rest."""
    order = samples.random_order(generator)
    out = min(count, max(1, int(VALIDATION_FRACTION * len(order))))
    validation = samples.take(order[:out])._replace(source=f"held-out part of {samples.source}")
    return validation, samples.take(order[out:])
