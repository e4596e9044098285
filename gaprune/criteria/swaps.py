"""Swaps: a one-shot mask, refined row by row until no exchange of two weights improves it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gaprune.criteria.activations import lamp_wanda_rows
from gaprune.criteria.layer_inputs import InputMoments
from gaprune.criteria.responses import input_moments
from gaprune.criteria.row_swaps import refine_mask
from gaprune.criteria.weights_only import lamp
from gaprune.masks.budget import keep_total
from gaprune.masks.supermask import Layout, global_mask, masked_weights
from gaprune.models.forward import batched_forward, functional_forward
from gaprune.models.network import DenseNetwork
from gaprune.models.time_limit import check_time

MOST_INPUTS = 4096  # calibration inputs: the more, the better the matrices of wide layers
# calibration inputs on which masks are compared, and values that the network may return for them
COMPARED, OUTPUTS = 256, 2**25
# Couplings of inputs are weakened by this fraction: calibration inputs are few, or not of the
# domain of the training data. So is the weight of their mean in the error. MiniLM at 0.7 on
# generated texts, rank correlation and cosine: 78.46, 0.695 without both, 79.06, 0.704 with both.
SHRINK, MEAN_SHARE = 0.1, 0.1
DENSITY = 0.5  # of the mask that is refined if no density is given


def swaps(
    network: DenseNetwork,
    calibration: Tensor | None,
    density: float | None,
    generator: torch.Generator,
) -> Tensor:
    """Refine a one-shot mask by swaps that lower the squared error of its rows' outputs.

    The mask is that of `lamp` or `lamp-wanda-rows`, whichever brings the network's outputs on the
    calibration inputs closer to the dense ones. See `refined_scores`.
    """
    assert calibration is not None  # `score_with` has checked it
    density = DENSITY if density is None else density
    scores, rows = lamp(network), lamp_wanda_rows(network, calibration)
    if not rows.isfinite().all():
        return rows  # `score` reports which layer is not finite
    inputs = calibration[:1].to(network.device)
    values = batched_forward(network.model, inputs).numel()
    inputs = calibration[: max(1, min(COMPARED, OUTPUTS // values))].to(network.device)
    errors = [
        output_error(network, one_shot_mask(base, network.layout, density), inputs)
        for base in (scores, rows)
    ]
    if errors[1] < errors[0]:
        scores = rows
    del rows
    return refined_scores(scores, network, calibration, density, generator, correlated=False)


def correlation_swaps(
    network: DenseNetwork,
    calibration: Tensor | None,
    density: float | None,
    generator: torch.Generator,
) -> Tensor:
    """Refine LAMP's mask by swaps that raise the correlation of each row with its dense outputs.

    The network's outputs lose their scale, which repair restores, and which the order of classes
    does not need. See `refined_scores`.
    """
    density = DENSITY if density is None else density
    return refined_scores(lamp(network), network, calibration, density, generator, correlated=True)


def refined_scores(
    scores: Tensor,
    network: DenseNetwork,
    calibration: Tensor | None,
    density: float,
    generator: torch.Generator,
    *,
    correlated: bool,
) -> Tensor:
    """Refine the mask of scores `[total]` at a density, see `refine_mask`, and order them by it.

    This covers linear layers and convolutions, also under an N:M pattern. Very large layers are
    compared in blocks of inputs. Other layers stay. The generator is not advanced.

    Returns:
        The same scores in every layer, the highest ones for the refined mask. So the layers keep
        their numbers of weights at every density, and at this one the best scores are the mask.
    """
    mask = one_shot_mask(scores, network.layout, density)
    layers, masks = network.layout.split(scores), network.layout.split(mask)
    for name, moments in input_moments(network, calibration, generator.clone_state()):
        check_time()
        refined = refined_layer(network, name, moments, masks[name], correlated=correlated)
        if refined is None:
            layers[name].fill_(math.nan)  # `score` reports which layer is not finite
        else:
            layers[name].copy_(reordered(layers[name], refined))
    return scores


def output_error(network: DenseNetwork, mask: Tensor, inputs: Tensor) -> float:
    """Return the squared error of the masked network's outputs on inputs `[N, …]`."""
    weights = masked_weights(network.weights, network.layout.split(mask))
    outputs = functional_forward(network.model, weights, inputs)
    error = float((outputs - batched_forward(network.model, inputs)).square().sum())
    return error if math.isfinite(error) else math.inf


def one_shot_mask(scores: Tensor, layout: Layout, density: float) -> Tensor:
    """Return the mask of scores `[total]` by the rules of the layout."""
    if layout.n_of_m is not None:
        return layout.n_of_m.mask(scores, layout.slices, layout.shapes)
    # rounded: 1 − 0.7 in floats is not 0.3
    return global_mask(scores, layout, keep_total(layout, round(1 - density, 12)))


def refined_layer(
    network: DenseNetwork, name: str, moments: InputMoments, mask: Tensor, *, correlated: bool
) -> Tensor | None:
    """Return the refined mask of a layer, in the shape of its weight; None if inputs overflow."""
    weight = network.weights[name].detach()
    matrix = moments.covariance()
    if not correlated:
        matrix.lerp_(moments.gram(), MEAN_SHARE)
    matrix = matrix.float()
    if not matrix.isfinite().all():
        return None
    diagonal = torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1))
    return refine_mask(
        weight.flatten(1).float(),
        torch.lerp(matrix, diagonal, SHRINK),
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
