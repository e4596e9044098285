"""Procedural feature vectors: no order between neighbours, but correlation and sparsity."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gaprune.calibration.generators.draws import (
    InputGenerator,
    chance,
    log_uniform,
    normal,
    uniform,
)
from gaprune.models.input_spec import InputSpec

CLUSTERS = 8
RANK = 4


def mixture(spec: InputSpec, count: int, generator: torch.Generator) -> Tensor:
    """Draw `[count, *spec.shape]` from a fresh Gaussian mixture, squashed to [0, 1].

    Eight clusters, each with its own mean, a rank-4 covariance and independent noise on top; the
    logistic function maps the line to the unit range.
    """
    features = math.prod(spec.shape)
    cluster = torch.randint(CLUSTERS, (count,), generator=generator)
    centres = normal(generator, CLUSTERS, features)
    factors = normal(generator, CLUSTERS, RANK, features)
    latent = normal(generator, count, RANK)
    values = centres[cluster] + 0.3 * normal(generator, count, features)
    for index in range(CLUSTERS):
        mine = cluster == index
        values[mine] += latent[mine] @ factors[index]
    scale = log_uniform(generator, count, 1, low=0.5, high=2.0)
    return torch.sigmoid(values * scale).view(count, *spec.shape)


def sparse(spec: InputSpec, count: int, generator: torch.Generator) -> Tensor:
    """Draw `[count, *spec.shape]`, mostly zeros, the rest exponential and clipped to 1.

    The share of non-zero features is drawn per vector, log-uniform from 2 % to 50 %; at least one
    feature is non-zero.
    """
    features = math.prod(spec.shape)
    share = log_uniform(generator, count, 1, low=0.02, high=0.5)
    present = uniform(generator, count, features) < share
    present |= torch.arange(features) == torch.randint(features, (count, 1), generator=generator)
    sizes = -torch.log1p(-uniform(generator, count, features)) * 0.4
    return torch.where(present, sizes, 0.0).clamp_(0, 1).view(count, *spec.shape)


def flat(spec: InputSpec, count: int, generator: torch.Generator) -> Tensor:
    """Draw `[count, *spec.shape]` uniform values; one vector in four is rounded to 0 or 1."""
    values = uniform(generator, count, math.prod(spec.shape))
    rounded = torch.where(chance(generator, 0.25, count, 1), values.round(), values)
    return rounded.view(count, *spec.shape)


VECTORS: dict[str, InputGenerator] = {"mixture": mixture, "sparse": sparse, "uniform": flat}
