"""One-shot pruning of whole neurons and channels by the norm of their weights."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from gaprune.errors import InputError
from gaprune.masks.budget import check_sparsity, keep_total
from gaprune.masks.supermask import MIN_KEEP, top_k_mask
from gaprune.models.target import Target

NORMS = (1.0, 2.0, math.inf)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def check_norm(norm: float) -> float:
    """Return `norm` as a float, or say which norms there are."""
    if isinstance(norm, bool) or norm not in NORMS:
        raise InputError(f"norm: must be 1, 2 or inf, got {norm!r}")
    return float(norm)


def check_dim(shape: Sequence[int], dim: int, name: str = "the weight") -> None:
    """Raise unless a weight of that shape has whole slices along `dim`.

    Raises:
        InputError: a vector, or no such dimension.
    """
    if len(shape) < 2:
        raise InputError(
            f"dim: slices need two or more dimensions, {name} has shape {tuple(shape)}; "
            "choose other weights, or leave dim out to prune single values"
        )
    if not -len(shape) <= dim < len(shape):
        raise InputError(
            f"dim: must be from {-len(shape)} to {len(shape) - 1} for {name} of shape "
            f"{tuple(shape)}, got {dim}"
        )


def slice_norms(weight: Tensor, dim: int, norm: float) -> Tensor:
    """Return the norm of every slice of a weight along one dimension.

    Args:
        weight: of two or more dimensions, floating.
        dim: the slices are `weight.select(dim, i)`; negative ones count from the end.
        norm: 1, 2 or inf, as `n` of `torch.nn.utils.prune.ln_structured`.

    Returns:
        float64 `[weight.shape[dim]]`: sums of many float32 terms depend on their order.

    Raises:
        InputError: a vector, another norm, no such dimension.
    """
    order = check_norm(norm)
    check_dim(weight.shape, dim)
    rows = weight.detach().double().movedim(dim, 0).flatten(1)
    norms: Tensor = torch.linalg.vector_norm(rows, order, dim=1)
    return norms


def structured_masks(target: Target, sparsity: float, norm: float) -> dict[str, Tensor]:
    """Remove the output neurons and channels of least norm, the same fraction in every layer.

    The outputs of the last layer that a forward pass runs are the network's own, so all of that
    layer stays; so do vectors (biases named in `prune_also`). In every other layer at least one
    channel stays. Channels are granted one by one to the layer that has the smallest part of its
    own, as long as they fit: at most `keep_total` weights stay, and not one more channel would fit.
    This is `torch.nn.utils.prune.ln_structured` along the outputs, layer by layer.

    Args:
        target: the dense network; stays as it is.
        sparsity: the fraction of all prunable weights to remove, in (0, 1).
        norm: 1 (Li et al. 2017, section 3.1), 2 or inf.

    Returns:
        Parameter name → bool mask of its shape, for every prunable parameter.

    Raises:
        InputError: one channel of every layer is more than the sparsity leaves; the message says
            how much is possible.
    """
    sparsity, norm = check_sparsity(sparsity), check_norm(norm)
    last = output_layer(target)
    pruned = {
        name: output_dim(target.model, name)
        for name, weight in target.weights.items()
        if weight.ndim > 1 and name != last
    }
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in target.weights.items()}
    counts = _counts(target, pruned, last, keep_total(target.layout, sparsity))
    for (name, dim), count in zip(pruned.items(), counts, strict=True):
        stays = top_k_mask(slice_norms(target.weights[name], dim, norm), count)
        masks[name] &= along(stays, masks[name].ndim, dim)
    return masks


def along(slices: Tensor, ndim: int, dim: int) -> Tensor:
    """Return one value per slice `[n]` as a view that broadcasts along `dim` of `ndim`."""
    shape = [1] * ndim
    shape[dim] = -1
    return slices.view(shape)


def output_dim(model: nn.Module, name: str) -> int:
    """Return the dimension of a weight that counts its layer's outputs.

    0, and 1 for transposed convolutions, where a slice is one output channel of every group.
    """
    return int(isinstance(model.get_submodule(name.rpartition(".")[0]), _TRANSPOSED))


def output_layer(target: Target) -> str:
    """Return the prunable weight whose layer is run last: its outputs are the network's own.

    Where no layer is called as a module (the network uses its parameters itself), it is the last
    weight in order of registration.

    Raises:
        InputError: only vectors are prunable.
    """
    names = {
        id(target.model.get_parameter(name)): name
        for name, weight in target.weights.items()
        if weight.ndim > 1
    }
    called = list(names.values())
    if not called:
        raise InputError(
            "model: has vectors only to prune, and whole channels need a layer's weight"
        )
    handles = []
    for module in target.model.modules():
        own = [names[id(p)] for p in module.parameters(recurse=False) if id(p) in names]
        if own:
            handles.append(module.register_forward_hook(_noting(called, own[-1])))
    try:
        with torch.no_grad():
            target.model(target.example())
    finally:
        for handle in handles:
            handle.remove()
    return called[-1]


def _noting(called: list[str], name: str) -> Callable[[nn.Module, object, object], None]:
    def note(_module: nn.Module, _inputs: object, _output: object) -> None:
        called.append(name)

    return note


def _counts(target: Target, pruned: Mapping[str, int], last: str, keep: int) -> list[int]:
    """Return how many channels of each pruned layer stay when `keep` weights may."""
    shapes = {name: target.weights[name].shape for name in pruned}
    widths = [shape[pruned[name]] for name, shape in shapes.items()]
    costs = [shape.numel() // n for shape, n in zip(shapes.values(), widths, strict=True)]
    total = target.layout.total
    whole = total - sum(shape.numel() for shape in shapes.values())
    least = whole + MIN_KEEP * sum(costs)
    if least > keep:
        raise InputError(
            f"sparsity: {keep} of {total} weights are to stay, but one channel of every layer "
            f"and the whole of {last!r} are {least}; "
            f"whole channels reach at most {1 - least / total:.9g}"
        )
    return _granted(widths, costs, keep - whole)


def _granted(widths: Sequence[int], costs: Sequence[int], budget: int) -> list[int]:
    """Return channels per layer: one each, then one by one to whoever has the smallest part."""
    counts = [MIN_KEEP] * len(widths)
    left = budget - MIN_KEEP * sum(costs)
    wanting = [((MIN_KEEP + 1) / width, layer) for layer, width in enumerate(widths)]
    heapq.heapify(wanting)
    while wanting:
        _, layer = heapq.heappop(wanting)
        if counts[layer] == widths[layer] or costs[layer] > left:
            continue  # for good: what is left only shrinks
        counts[layer] += 1
        left -= costs[layer]
        heapq.heappush(wanting, ((counts[layer] + 1) / widths[layer], layer))
    return counts
