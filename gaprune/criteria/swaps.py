"""Swaps: a one-shot mask, refined row by row until no exchange of two weights improves it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gaprune.criteria.activations import lamp_wanda_rows
from gaprune.criteria.layer_inputs import InputMoments
from gaprune.criteria.responses import input_moments
from gaprune.criteria.row_swaps import refine_mask
from gaprune.masks.budget import keep_total
from gaprune.masks.supermask import Layout, global_mask
from gaprune.models.network import DenseNetwork
from gaprune.models.time_limit import check_time

MOST_INPUTS = 4096  # calibration inputs: the more, the better the matrices of wide layers
DENSITY = 0.5  # of the mask that is refined if no density is given


def swaps(
    network: DenseNetwork,
    calibration: Tensor | None,
    density: float | None,
    generator: torch.Generator,
    *,
    correlated: bool = False,
) -> Tensor:
    """Refine the mask of `lamp-wanda-rows` at a density by swaps, see `refine_mask`.

    This covers linear layers and convolutions, also under an N:M pattern. Inputs of very large
    layers are compared in blocks. Other weights keep their scores.

    Returns:
        In every layer the scores of `lamp-wanda-rows`, the highest ones for the refined mask. So
        the layers keep their numbers of weights at every density; at this one, the best scores
        are the refined mask.
    """
    base = lamp_wanda_rows(network, calibration)
    if not base.isfinite().all():  # `score` reports which layer is not finite
        return base
    mask = one_shot_mask(base, network.layout, DENSITY if density is None else density).to(
        base.device
    )
    scores, masks = network.layout.split(base), network.layout.split(mask)
    for name, moments in input_moments(network, calibration, generator.clone_state()):
        check_time()
        refined = refined_layer(network, name, moments, masks[name], correlated=correlated)
        scores[name].copy_(reordered(scores[name], refined))
    return base


def one_shot_mask(scores: Tensor, layout: Layout, density: float) -> Tensor:
    """Return the mask of scores `[total]` by the rules of the layout."""
    if layout.n_of_m is not None:
        return layout.n_of_m.mask(scores, layout.slices, layout.shapes)
    # rounded: 1 − 0.7 in floats is not 0.3
    return global_mask(scores, layout, keep_total(layout, round(1 - density, 12)))


def refined_layer(
    network: DenseNetwork, name: str, moments: InputMoments, mask: Tensor, *, correlated: bool
) -> Tensor:
    """Return the refined mask of a layer, in the shape of its weight."""
    weight = network.weights[name].detach()
    matrix = moments.covariance() if correlated else moments.gram()
    return refine_mask(
        weight.flatten(1).float(),
        matrix.float(),
        mask.flatten(1),
        moments.shape,
        correlated=correlated,
        groups=input_groups(network, name),
    ).view_as(weight)


def input_groups(network: DenseNetwork, name: str) -> Tensor | None:
    """Return the groups of an N:M pattern as indices into a row of a weight, `[groups, M]`."""
    layout = network.layout
    if layout.n_of_m is None:
        return None
    index = layout.names.index(name)
    channels = layout.shapes[index][1]
    if layout.n_of_m.axes[index] is None:
        return None  # stays dense: there is nothing to swap
    columns = torch.arange(math.prod(layout.shapes[index][1:]), device=network.device)
    return columns.view(channels // layout.n_of_m.of, layout.n_of_m.of, -1).mT.flatten(0, 1)


def reordered(scores: Tensor, mask: Tensor) -> Tensor:
    """Return the scores of a layer, exchanged so that the mask has the highest; else in order."""
    values, order = scores.flatten().sort(descending=True, stable=True)
    is_kept = mask.flatten()[order]
    ranking = torch.cat([order[is_kept], order[~is_kept]])
    return torch.empty_like(values).scatter_(0, ranking, values).view_as(scores)
