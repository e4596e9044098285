"""Procedural calibration inputs: structured random inputs, and noise, for every kind of input."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gaprune.calibration.generators.procedural_images import IMAGES
from gaprune.calibration.generators.procedural_signals import SIGNALS
from gaprune.calibration.generators.random_draws import (
    InputGenerator,
    draw_bool,
    draw_log_uniform,
    draw_normal,
    draw_uniform,
)
from gaprune.calibration.generators.token_sequences import TOKENS, uniform_ids
from gaprune.models.input_spec import InputSpec

CLUSTERS = 8
RANK = 4


def gaussian_mixture(spec: InputSpec, count: int, generator: torch.Generator) -> Tensor:
    """Draw float32 `[count, *spec.shape]` in [0, 1] from a random Gaussian mixture.

    Eight clusters have a random mean, a covariance of rank 4 and independent noise; a random scale
    and the logistic function map the values to the unit range.
    """
    features = math.prod(spec.shape)
    cluster = torch.randint(CLUSTERS, (count,), generator=generator)
    centres = draw_normal(generator, CLUSTERS, features)
    # A covariance of low rank correlates the features, as in real tables.
    factors = draw_normal(generator, CLUSTERS, RANK, features)
    latent = draw_normal(generator, count, RANK)
    values = centres[cluster] + 0.3 * draw_normal(generator, count, features)
    for index in range(CLUSTERS):
        members = cluster == index
        values[members] += latent[members] @ factors[index]
    scale = draw_log_uniform(generator, count, 1, low=0.5, high=2.0)
    return torch.sigmoid(values * scale).view(count, *spec.shape)


def sparse_vectors(spec: InputSpec, count: int, generator: torch.Generator) -> Tensor:
    """Draw float32 `[count, *spec.shape]` in [0, 1]: mostly zeros, the rest exponential.

    The fraction of non-zero features of a vector is log-uniform from 2 % to 50 %; at least one
    feature is non-zero. Values above 1 are clipped.
    """
    features = math.prod(spec.shape)
    density = draw_log_uniform(generator, count, 1, low=0.02, high=0.5)
    present = draw_uniform(generator, count, features) < density
    present |= torch.arange(features) == torch.randint(features, (count, 1), generator=generator)
    # -ln(1 - u) of a uniform u is exponential.
    sizes = -torch.log1p(-draw_uniform(generator, count, features)) * 0.4
    return torch.where(present, sizes, 0.0).clamp_(0, 1).view(count, *spec.shape)


def uniform_vectors(spec: InputSpec, count: int, generator: torch.Generator) -> Tensor:
    """Draw float32 `[count, *spec.shape]`, uniform on [0, 1); a quarter is rounded to 0 or 1."""
    values = draw_uniform(generator, count, math.prod(spec.shape))
    rounded = torch.where(draw_bool(generator, 0.25, count, 1), values.round(), values)
    return rounded.view(count, *spec.shape)


def uniform_noise(spec: InputSpec, count: int, generator: torch.Generator) -> Tensor:
    """Draw float32 `[count, *spec.shape]`, every value uniform on [0, 1)."""
    return draw_uniform(generator, count, *spec.shape)


GENERATORS: dict[str, dict[str, InputGenerator]] = {
    "image": IMAGES,
    "signal": SIGNALS,
    "tokens": TOKENS,
    "vector": {
        "mixture": gaussian_mixture,
        "sparse": sparse_vectors,
        "uniform": uniform_vectors,
    },
}
"""Kind of input → name → generator."""

NOISE: dict[str, InputGenerator] = {
    "image": uniform_noise,
    "signal": uniform_noise,
    "tokens": uniform_ids,
    "vector": uniform_noise,
}
"""Kind of input → generator without any structure."""


def procedural(spec: InputSpec, count: int, generator: torch.Generator) -> Tensor:
    """Draw inputs from all procedural generators of a kind, in equal parts and random order.

    They are `[count, *spec.shape]`: float32 in [0, 1], or int64 token ids. The remainder of `count`
    goes to generators chosen at random.
    """
    generators = list(GENERATORS[spec.kind].values())
    # The first generators get the remainder, hence the random order.
    order = torch.randperm(len(generators), generator=generator).tolist()
    parts = []
    for index, turn in enumerate(order):
        size = len(range(index, count, len(generators)))
        if size:
            parts.append(generators[turn](spec, size, generator))
    return torch.cat(parts)[torch.randperm(count, generator=generator)]
