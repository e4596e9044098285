"""Criteria that need the weights alone: random, magnitude, LAMP and ERK."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from gaprune.models.layer_kinds import weight_axes
from gaprune.models.network import DenseNetwork


def random(
    network: DenseNetwork,
    _calibration: Tensor | None,
    _density: float | None,
    generator: torch.Generator,
) -> Tensor:
    """Score every weight uniformly in [0, 1): the baseline that any criterion must beat."""
    scores = torch.rand(network.layout.total, generator=generator, device=generator.device)
    return scores.to(network.device)


def magnitude(network: DenseNetwork, *_: object) -> Tensor:
    """Score |w| (Han et al. 2015, section 3)."""
    return network.flat.abs_().float()  # in place: it is a copy


def lamp(network: DenseNetwork, *_: object) -> Tensor:
    """Layer-adaptive magnitude (Lee et al. 2021, eq. 4); see `lamp_scores`."""
    return _by_layer(network, lamp_scores)


def erk(network: DenseNetwork, *_: object) -> Tensor:
    """Magnitude inside a layer, Erdős–Rényi-kernel densities between layers.

    Evci et al. 2020, section 3: layer l keeps the density ε·r_l, at most 1, where
    r_l = (Σ dimensions) / (Π dimensions) of its weight, kernel included. The score is −q / r_l,
    where q in (0, 1] is the rank by magnitude, from the top of the layer, over its size. It is at
    least −ε exactly if q ≤ ε·r_l, so the best k weights have these densities for any k. Experts
    in one weight count as layers of their own, of equal density.
    """
    layers = (
        # the first axes of the rows count experts
        (name, _erk_scores(w.detach(), w.shape[len(weight_axes(network.model, name).rows) - 1 :]))
        for name, w in network.weights.items()
    )
    return flat_scores(network, layers)


def erk_factor(shape: tuple[int, ...]) -> float:
    """Return r_l for a weight's shape; 1 for a vector or scalar, as for rows of one weight each."""
    return sum(shape) / math.prod(shape) if len(shape) > 1 else 1.0


def lamp_scores(weight: Tensor) -> Tensor:
    """Score w² / Σ v² over all weights v of the layer with |v| ≥ |w| (Lee et al. 2021, eq. 4).

    Of equal magnitudes the earlier index counts as the larger. The largest weight of any layer
    scores 1, so the best k weights of the network never empty a layer. A layer of zeros scores 0.

    Returns:
        Float64, in the shape of the weight.
    """
    magnitudes, order = torch.sort(weight.flatten().double().abs(), descending=True, stable=True)
    squares = magnitudes.square_()  # in place: a layer may have as many weights as a network
    sums = squares.cpu().cumsum(0).to(squares.device)  # a GPU would add in varying order
    ratios = squares.div_(sums.clamp_min_(torch.finfo(torch.float64).tiny))
    del sums
    scores = torch.empty_like(ratios)
    scores[order] = ratios
    return scores.view(weight.shape)


def _erk_scores(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    order = torch.sort(weight.flatten().abs(), descending=True, stable=True).indices
    ranks = torch.empty(weight.numel(), dtype=torch.float64, device=weight.device)
    ranks[order] = torch.arange(1, weight.numel() + 1, dtype=torch.float64, device=weight.device)
    return (-ranks / weight.numel() / erk_factor(tuple(shape))).view(weight.shape)


def _by_layer(network: DenseNetwork, rule: Callable[[Tensor], Tensor]) -> Tensor:
    return flat_scores(network, ((name, rule(w.detach())) for name, w in network.weights.items()))


def flat_scores(network: DenseNetwork, layers: Iterable[tuple[str, Tensor]]) -> Tensor:
    """Return scores of named layers as one float32 vector `[total]`.

    Layers are copied one at a time: as float64, all of them take more memory than the network.
    """
    flat = torch.empty(network.layout.total, device=network.device)
    parts = network.layout.split(flat)
    for name, scores in layers:
        parts[name].copy_(scores)
    return flat
