"""Swaps: a one-shot mask, refined row by row until no exchange of two weights improves it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from gaprune.criteria.activations import lamp_wanda_rows, wanda_rows
from gaprune.criteria.allocation import fisher_wanda_rows
from gaprune.criteria.layer_inputs import InputMoments, outputs_first
from gaprune.criteria.layer_tasks import work_on_layers
from gaprune.criteria.row_swaps import refine_mask
from gaprune.criteria.weights_only import lamp
from gaprune.masks.budget import keep_total
from gaprune.masks.supermask import Layout, global_mask, masked_weights
from gaprune.models.forward import batched_forward, functional_forward
from gaprune.models.network import DenseNetwork
from gaprune.models.time_limit import check_time

MOST_INPUTS = 4096  # calibration inputs: the more, the better the matrices of wide layers
# Calibration inputs on which masks are compared, values that the network may return for them, and
# tokens of them in all.
COMPARED, OUTPUTS, TOKENS = 256, 2**25, 4096
LOGITS = 3  # axes of next-token logits: texts, places and vocabulary
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

    The mask is that of `lamp` or `lamp-wanda-rows`. For language models, whose own texts are of
    their domain, it may also be that of `wanda-rows`, at equal counts or at those of
    `fisher_wanda_rows`. It is whichever brings the network's outputs on calibration inputs closest
    to the dense ones. See `refined_scores`. The generator is not advanced.
    """
    assert calibration is not None  # `score_with` has checked it
    density = DENSITY if density is None else density
    inputs = calibration[:1].to(network.device)
    outputs = batched_forward(network.model, inputs)
    count = min(COMPARED, OUTPUTS // outputs.numel())
    bases: list[Callable[[], Tensor]] = [
        partial(lamp, network),
        partial(lamp_wanda_rows, network, calibration),
    ]
    if network.inputs.kind == "tokens" and outputs.ndim == LOGITS:
        count = max(1, min(count, TOKENS // inputs.numel()))
        bases.append(partial(wanda_rows, network, calibration))
        if network.layout.n_of_m is None:
            measured = partial(fisher_wanda_rows, network, calibration, calibration[:count])
            bases.append(partial(measured, density, generator))
    compared = calibration[: max(1, count)].to(network.device)
    dense = batched_forward(network.model, compared)
    best, lowest = bases[0], math.inf
    for base in bases:
        scores = base()
        # of the bounds, which are NaN if any score is: `isfinite` copies all scores
        if not torch.stack(scores.aminmax()).isfinite().all():
            return scores  # `score` reports which layer is not finite
        mask = one_shot_mask(scores, network.layout, density)
        del scores  # the best ones are computed again: they take as much memory as the network
        error = _difference(_masked_outputs(network, mask, compared), dense, compared)
        if error < lowest:
            best, lowest = base, error
    return refined_scores(best(), network, calibration, density, generator, correlated=False)


def _masked_outputs(network: DenseNetwork, mask: Tensor, inputs: Tensor) -> Tensor:
    weights = masked_weights(network.weights, network.layout.split(mask))
    return functional_forward(network.model, weights, inputs)


def _difference(outputs: Tensor, dense: Tensor, inputs: Tensor) -> float:
    """Return the squared error of outputs, or of next-token distributions the KL divergence."""
    if outputs.ndim == LOGITS and inputs.dtype == torch.int64:
        student, teacher = (x.float().log_softmax(-1) for x in (outputs, dense))
        error = functional.kl_div(student, teacher, reduction="sum", log_target=True)
    else:
        error = (outputs - dense).square().sum()
    return float(error) if math.isfinite(error) else math.inf


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
    assert calibration is not None  # `score_with` has checked it
    layers = network.layout.split(scores)
    masks = network.layout.split(one_shot_mask(scores, network.layout, density))

    def make_task(name: str, moments: InputMoments) -> RefineLayer:
        groups = input_groups(network, name)
        return RefineLayer(name, moments, layers[name], masks[name], groups, correlated)

    for name, refined in work_on_layers(network, calibration, generator.clone_state(), make_task):
        check_time()
        layers[name].copy_(refined)
    return scores


@dataclass(frozen=True, eq=False)
class RefineLayer:
    """Refines the mask of a layer by swaps, see `refine_mask`, and orders its scores by it."""

    name: str  # of the weight
    moments: InputMoments
    scores: Tensor  # in the shape of the weight, as the mask
    mask: Tensor
    groups: Tensor | None
    correlated: bool

    def run(self, network: DenseNetwork) -> Tensor:
        """Return the scores of the layer; NaN, which `score` reports, if inputs overflow."""
        weight, matrix = network.weights[self.name].detach(), self.moments.covariance()
        if not self.correlated:
            matrix.lerp_(self.moments.gram(), MEAN_SHARE)
        matrix = matrix.float().to(weight.device)
        if not matrix.isfinite().all():
            return torch.full_like(self.scores, math.nan)
        diagonal = torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1))
        module = network.layer_of(self.name)
        rows, mask = (outputs_first(module, x) for x in (weight, self.mask.to(weight.device)))
        refined = refine_mask(
            rows.flatten(1).float(),
            torch.lerp(matrix, diagonal, SHRINK),
            mask.flatten(1),
            self.moments.shape,
            correlated=self.correlated,
            groups=self.groups,
        )
        refined = outputs_first(module, refined.view_as(mask)).to(self.scores.device)
        return reordered(self.scores, refined)


def one_shot_mask(scores: Tensor, layout: Layout, density: float) -> Tensor:
    """Return the mask of scores `[total]` by the rules of the layout."""
    if layout.n_of_m is not None:
        return layout.n_of_m.mask(scores, layout.slices, layout.shapes)
    # rounded: 1 − 0.7 in floats is not 0.3
    return global_mask(scores, layout, keep_total(layout, round(1 - density, 12)))


def input_groups(network: DenseNetwork, name: str) -> Tensor | None:
    """Return the groups of an N:M pattern as indices into a row of a weight, `[groups, M]`."""
    layout = network.layout
    if layout.n_of_m is None:
        return None
    index = layout.names.index(name)
    if layout.n_of_m.axes[index] is None:
        return None  # stays dense: there is nothing to swap
    channels, *kernel = outputs_first(network.layer_of(name), network.weights[name]).shape[1:]
    columns = torch.arange(channels * math.prod(kernel), device=network.device)
    return columns.view(channels // layout.n_of_m.of, layout.n_of_m.of, -1).mT.flatten(0, 1)


def reordered(scores: Tensor, mask: Tensor) -> Tensor:
    """Return the scores of a layer, exchanged so that the mask has the highest; else in order."""
    values, order = scores.flatten().sort(descending=True, stable=True)
    is_kept = mask.flatten()[order]
    ranking = torch.cat([order[is_kept], order[~is_kept]])
    return torch.empty_like(values).scatter_(0, ranking, values).view_as(scores)
