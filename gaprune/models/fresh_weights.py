"""Whether the weights of a network look as its constructor drew them: then nobody trained it.

A layer looks fresh if its weights have the spread and the shape of an initialisation of torch, timm
or transformers: training stretches the tails and moves the spread. Normalisations with other values
than 1 and 0 contradict it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor, nn

LEAST_WEIGHTS = 1000  # of a layer: fewer say too little about their distribution
MOST_READ = 1 << 18  # weights of a layer that are read
FRESH_SHARE = 0.75  # of the layers that look fresh, from which a network does
SIGMAS = 4.0  # standard errors by which spread and kurtosis may differ
_UNIFORM, _NORMAL = 1.8, 3.0  # kurtosis
_FIXED_SPREADS = (0.01, 0.02)  # of transformers


def fresh_layers(model: nn.Module) -> tuple[int, int] | None:
    """Return how many layers look freshly initialised, of how many; None for a trained network."""
    if any(map(_is_trained_norm, model.modules())):
        return None
    looks = [_looks_fresh(weight) for weight in _large_matrices(model)]
    if not looks or sum(looks) < FRESH_SHARE * len(looks):
        return None
    return sum(looks), len(looks)


def _is_trained_norm(module: nn.Module) -> bool:
    statistics = (getattr(module, "running_mean", None), getattr(module, "running_var", None))
    for tensor, value in zip(statistics, (0, 1), strict=True):
        if isinstance(tensor, Tensor) and bool((tensor != value).any()):
            return True
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 1 or not len(weight):
        return False
    # the weights of a norm begin with 1, or with 0 at the end of a block, all the same
    return bool((weight != weight[0]).any())


def _large_matrices(model: nn.Module) -> Iterator[Tensor]:
    for weight in model.parameters():
        if weight.ndim >= 2 and weight.is_floating_point() and weight.numel() >= LEAST_WEIGHTS:
            yield weight.detach()


def _looks_fresh(weight: Tensor) -> bool:
    """Return whether spread and kurtosis are those of an initialisation by the layer's sizes."""
    field = math.prod(weight.shape[2:])
    fans = [weight.shape[0] * field, weight.shape[1] * field]
    values = weight.flatten()[:MOST_READ].double()
    count, spread = len(values), float(values.std())
    mean = float(values.mean())
    if spread == 0 or abs(mean) > SIGMAS * spread / math.sqrt(count):
        return False
    kurtosis = float(((values - mean) / spread).pow(4).mean())
    for expected, variance_of_spread, error in (
        (_UNIFORM, 0.2, math.sqrt(0.457 / count)),
        (_NORMAL, 0.5, math.sqrt(24 / count)),
    ):
        if abs(kurtosis - expected) > SIGMAS * error:
            continue
        tolerance = SIGMAS * math.sqrt(variance_of_spread / count)
        # variances of Kaiming (gains 1, √2 and 1/√3), Xavier and LeCun initialisations
        variances = [gain / fan for fan in fans for gain in (1 / 3, 1, 2)] + [2 / sum(fans)]
        spreads = [*map(math.sqrt, variances), *_FIXED_SPREADS]
        return any(abs(spread / known - 1) <= tolerance for known in spreads)
    return False
