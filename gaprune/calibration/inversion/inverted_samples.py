"""Inverted inputs of a target, from disk where they have been made before."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor

from gaprune.calibration.cached_inputs import Order, draw_seed, make_or_read
from gaprune.calibration.generators.mixture import GeneratorMixture
from gaprune.calibration.inversion.batchnorm import Inversion, invert
from gaprune.calibration.samples import Samples
from gaprune.callbacks import Observer
from gaprune.models.target import Target

INVERTING = "inverting the network"  # names the part of the run in progress


def inverted_samples(
    target: Target,
    starts: GeneratorMixture,
    count: int,
    generator: torch.Generator,
    how: Inversion,
    observer: Observer,
) -> Samples:
    """Invert a target, or read what was made for the same weights, settings and seed.

    Args:
        target: a network with BatchNorm.
        starts: draws the inputs where the optimisation begins.
        count: how many inputs.
        generator: gives the seed; it advances equally whether the inputs are made or read.
        how: lengths and weights of the optimisation. With a time limit there may be fewer inputs.
        observer: told of progress, and of a cache that cannot be used.

    Raises:
        InputError: the network cannot be inverted.
    """

    def make(begin: Tensor, own: torch.Generator) -> Tensor:
        return invert(
            target.model,
            target.inputs,
            begin.to(target.dtype),
            own,
            how,
            lambda done, total: observer.progress(INVERTING, done, total),
        )

    order = Order(target, starts, count, draw_seed(generator))
    made = make_or_read(order, asdict(how), make, observer)
    source = f"{len(made)} inputs inverted from BatchNorm, started from {starts.description}"
    return Samples(made, None, source)
