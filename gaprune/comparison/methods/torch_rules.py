"""Rules of `torch.nn.utils.prune` for a whole network, and pruning of whole channels by norm.

| torch.nn.utils.prune  | here                                                    |
|-----------------------|---------------------------------------------------------|
| `random_unstructured` | `PruningRule(amount, where, "random")`                  |
| `l1_unstructured`     | `PruningRule(amount, where)`                            |
| `random_structured`   | `PruningRule(amount, where, "random", dim=dim)`         |
| `ln_structured`       | `PruningRule(amount, where, dim=dim, norm=n)`           |
| `global_unstructured` | `PruningRule(amount, scope="global")`                   |
| `custom_from_mask`    | `start={name: mask}`                                    |
| `PruningContainer`    | several rules; or earlier masks as `start`              |
| `remove`              | `gaprune.bake` after `gaprune.attach`                   |
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from gaprune.criteria import CRITERIA, DenseNetwork, score
from gaprune.errors import InputError, unknown_name
from gaprune.masks.budget import check_sparsity, keep_total
from gaprune.masks.supermask import MIN_KEEP, Layout, check_mask, top_k_mask
from gaprune.models.target import Target

Names = list[str]
NORMS = (1.0, 2.0, math.inf)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
SCOPES: dict[str, Callable[[Names], list[Names]]] = {
    "layer": lambda names: [[name] for name in names],
    "global": lambda names: [names],
}
"""What a rule ranks together: the weights of each parameter, or those of all of them."""


@dataclass(frozen=True)
class PruningRule:
    """What to remove, from which parameters, and by which ranking.

    Attributes:
        amount: of what is left, a float in (0, 1): that fraction, rounded half to even as torch
            does; an int from 1: that many. Weights, or whole slices with `dim`.
        where: a glob of qualified parameter names (`fc1.weight`, `*.bias`), or a layer type, with
            or without the parameter's name (`Conv2d`, `Linear.weight`; base classes count). It
            selects among the prunable parameters of the target.
        criterion: a key of `CRITERIA`; the lowest scores are removed, of equal ones the last.
        scope: a key of `SCOPES`. Norms of slices are not normalised, so a global rule with `dim`
            prefers layers with larger slices.
        dim: None for single weights, or the dimension along which whole slices are removed.

    Raises:
        InputError: a value that breaks its rule.
    """

    amount: float
    where: str = "*"
    criterion: str = "magnitude"
    scope: str = "layer"
    dim: int | None = None
    norm: float = 2.0  # 1, 2 or inf: how the scores of a slice are combined; unused without `dim`

    def __post_init__(self) -> None:
        amount = self.amount
        is_count = isinstance(amount, int) and not isinstance(amount, bool)
        if not (amount >= 1 if is_count else isinstance(amount, float) and 0 < amount < 1):
            raise InputError(
                "amount: must be a fraction strictly between 0 and 1, or a whole number from 1 "
                f"(how many), got {amount!r}"
            )
        if not isinstance(self.where, str) or not self.where:
            raise InputError(
                "where: must be a layer type such as 'Conv2d' or a glob of parameter names such as "
                f"'fc*.weight', got {self.where!r}"
            )
        if self.scope not in SCOPES:
            raise unknown_name("scope", self.scope, SCOPES)
        if self.dim is not None and (isinstance(self.dim, bool) or not isinstance(self.dim, int)):
            raise InputError(f"dim: must be a whole number or None, got {self.dim!r}")
        check_norm(self.norm)


def prune_by_rules(
    target: Target,
    rules: Sequence[PruningRule],
    *,
    calibration: Tensor | None = None,
    generator: torch.Generator,
    start: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return masks after all rules, each applied to what the ones before it have left.

    As in torch's `PruningContainer`, a criterion scores the network that is left, with removed
    weights at zero; a rule for single weights ranks the remaining ones, a rule for slices those
    that still hold a weight. Masks equal torch's unless scores are equal: of equal ones the later
    index is removed first, where torch leaves it open. A rule may empty a layer, as in torch.
    A slice is ranked by the norm of its scores; for a criterion with negative scores, all scores
    are raised until the smallest is zero. `random` draws one number per slice.

    Args:
        target: the dense network; stays unchanged.
        rules: applied in order.
        calibration: inputs `[N, …]` for the criteria that use inputs.
        generator: the only source of randomness.
        start: initial masks of any prunable parameters: name → bool.

    Returns:
        A bool mask for every prunable parameter, by name.

    Raises:
        InputError: a rule matches nothing (the message says what would, and what to add to
            `prune_also`), removes more than is left, or needs calibration inputs; a mask that does
            not fit.
        GapruneError: a criterion gives scores that are not finite.
    """
    matches = [matching(target, rule.where) for rule in rules]
    for rule, names in zip(rules, matches, strict=True):
        if rule.criterion not in CRITERIA:
            raise unknown_name("criterion", rule.criterion, CRITERIA)
        for name in names if rule.dim is not None else ():
            check_dim(target.weights[name].shape, rule.dim or 0, name)
    masks = _initial_masks(target, start or {})
    for rule, names in zip(rules, matches, strict=True):
        masks |= _apply(target, masks, rule, names, calibration, generator)
    return masks


def matching(target: Target, where: str) -> Names:
    """Return the prunable parameters that `PruningRule.where` selects, in the target's order."""
    terms_of = _terms(target.model)
    matches = [
        name for name, terms in terms_of.items() if any(fnmatchcase(t, where) for t in terms)
    ]
    prunable = [name for name in target.layout.names if name in matches]
    if prunable:
        return prunable
    if matches:
        raise InputError(
            f"where: {where!r} matches {', '.join(matches)}, not prunable in this target; "
            f"load it with prune_also={matches}"
        )
    types = sorted({term for name in target.weights for term in terms_of[name] if "." not in term})
    raise InputError(
        f"where: {where!r} matches no parameter; prunable are {', '.join(target.layout.names)} "
        f"in layers of type {', '.join(types)}"
    )


def _terms(model: nn.Module) -> dict[str, set[str]]:
    """Return parameter name → what may select it: its names, its layer types, and both."""
    first_name = {id(parameter): name for name, parameter in model.named_parameters()}
    terms: dict[str, set[str]] = {name: set() for name in first_name.values()}
    for path, module in model.named_modules(remove_duplicate=False):
        # base classes select, too
        types = [t.__name__ for t in type(module).__mro__ if issubclass(t, nn.Module)]
        types.remove(nn.Module.__name__)  # it would select everything
        for leaf, parameter in module.named_parameters(recurse=False):
            terms[first_name[id(parameter)]] |= {
                f"{path}.{leaf}".lstrip("."),
                *types,
                *(f"{name}.{leaf}" for name in types),
            }
    return terms


def _initial_masks(target: Target, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, mask in start.items():
        if name not in target.weights:
            raise InputError(
                f"start: {name!r} is not prunable in this target, which has "
                f"{', '.join(target.weights)}; load it with prune_also"
            )
        check_mask(f"start[{name!r}]", mask, target.weights[name].shape)
    return {
        name: start[name].to(weight.device).clone()
        if name in start
        else torch.ones_like(weight, dtype=torch.bool)
        for name, weight in target.weights.items()
    }


def _apply(
    target: Target,
    masks: Mapping[str, Tensor],
    rule: PruningRule,
    names: Names,
    calibration: Tensor | None,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Return the new masks of the parameters that a rule matches."""
    # alive: which weights (or slices) still hold something, flat bool per parameter
    if rule.dim is None:
        alive = {name: masks[name].flatten() for name in names}
    else:
        alive = {n: masks[n].movedim(rule.dim, 0).flatten(1).any(dim=1) for n in names}
    groups = SCOPES[rule.scope](names)
    keeps = [_keep_count(rule, g, sum(int(alive[n].count_nonzero()) for n in g)) for g in groups]
    scores = {}
    if rule.dim is not None and rule.criterion == "random":
        # one number per slice: norms of random scores would favour slices with more weights
        for name in names:
            drawn = torch.rand(masks[name].shape[rule.dim], generator=generator)
            scores[name] = drawn.to(masks[name].device)
    else:
        model = target.masked_copy(masks)
        weights = {name: model.get_parameter(name).detach() for name in names}
        network = DenseNetwork(model, weights, Layout.of(weights), target.inputs)
        density = max(sum(keeps), 1) / sum(units.numel() for units in alive.values())
        flat = score(rule.criterion, network, calibration, generator, density)
        scores = network.layout.split(flat)
        if rule.dim is None:
            scores = {name: values.flatten() for name, values in scores.items()}
        else:
            # norms need scores from 0
            lowest = min(0.0, *(float(values.min()) for values in scores.values()))
            scores = {
                name: slice_norms((values - lowest) * masks[name], rule.dim, rule.norm)
                for name, values in scores.items()
            }
    new_masks = {}
    for group, keep in zip(groups, keeps, strict=True):
        stays = torch.cat([alive[name] for name in group])
        stays[stays.clone()] = top_k_mask(torch.cat([scores[name] for name in group])[stays], keep)
        # back to one mask per parameter
        parts = stays.split([alive[name].numel() for name in group])
        for name, part in zip(group, parts, strict=True):
            mask = masks[name]
            new_masks[name] = mask & (
                part.view(mask.shape) if rule.dim is None else along(part, mask.ndim, rule.dim)
            )
    return new_masks


def _keep_count(rule: PruningRule, group: Names, left: int) -> int:
    # round halves to even, as torch does
    remove = rule.amount if isinstance(rule.amount, int) else round(rule.amount * left)
    if remove > left:
        what = "weights" if rule.dim is None else f"slices along dimension {rule.dim}"
        raise InputError(
            f"amount: {rule.amount} is more than the {left} {what} that are left of "
            f"{', '.join(group)}; name fewer, or a fraction"
        )
    return left - remove


def check_norm(norm: float) -> float:
    """Return `norm` as a float; raise an `InputError` unless it is 1, 2 or inf."""
    if isinstance(norm, bool) or norm not in NORMS:
        raise InputError(f"norm: must be 1, 2 or inf, got {norm!r}")
    return float(norm)


def check_dim(shape: Sequence[int], dim: int, name: str = "the weight") -> None:
    """Raise an `InputError` unless a weight of that shape has whole slices along `dim`."""
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
    """Return the norm (1, 2 or inf) of every `weight.select(dim, i)`, float64 `[shape[dim]]`.

    Raises:
        InputError: another norm or dimension, or a vector.
    """
    order = check_norm(norm)
    check_dim(weight.shape, dim)
    # float64, because sums of many float32 terms depend on their order
    rows = weight.detach().double().movedim(dim, 0).flatten(1)
    norms: Tensor = torch.linalg.vector_norm(rows, order, dim=1)
    return norms


def structured_masks(target: Target, sparsity: float, norm: float) -> dict[str, Tensor]:
    """Remove the output neurons and channels with the least norm, the same fraction per layer.

    All outputs of the last layer that a forward pass runs are kept, because they are the network's
    outputs; so are vectors (biases named in `prune_also`). Every other layer keeps at least one
    channel. Further channels are kept one by one, each in the layer that keeps the smallest
    fraction so far, as long as they fit: at most `keep_total` weights are kept, and no further
    channel would fit. This is `torch.nn.utils.prune.ln_structured` along the outputs per layer.

    `sparsity` is the fraction of all prunable weights to remove; `norm` is 1 (Li et al. 2017,
    section 3.1), 2 or inf. Returns a bool mask for every prunable parameter, by name.

    Raises:
        InputError: one channel of every layer is more than the sparsity leaves; the message says
            how much is possible.
    """
    sparsity, norm = check_sparsity(sparsity), check_norm(norm)
    last = output_layer(target)
    dims = {
        name: output_dim(target.model, name)
        for name, weight in target.weights.items()
        if weight.ndim > 1 and name != last
    }
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in target.weights.items()}
    counts = _channel_counts(target, dims, last, keep_total(target.layout, sparsity))
    for (name, dim), count in zip(dims.items(), counts, strict=True):
        stays = top_k_mask(slice_norms(target.weights[name], dim, norm), count)
        masks[name] &= along(stays, masks[name].ndim, dim)
    return masks


def along(slices: Tensor, ndim: int, dim: int) -> Tensor:
    """Return one value per slice `[n]` as a view that broadcasts along `dim` of `ndim`."""
    shape = [1] * ndim
    shape[dim] = -1
    return slices.view(shape)


def output_dim(model: nn.Module, name: str) -> int:
    """Return the dimension of a weight that counts its layer's outputs."""
    # a slice of a transposed convolution is one output channel of every group
    return int(isinstance(model.get_submodule(name.rpartition(".")[0]), _TRANSPOSED))


def output_layer(target: Target) -> str:
    """Return the prunable weight whose layer runs last: its outputs are the network's.

    If no layer is called as a module (the network uses its parameters directly), it is the last
    weight in order of registration. An `InputError` says if only vectors are prunable.
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
    with ExitStack() as hooks, torch.no_grad():
        for module in target.model.modules():
            weights = [names[id(p)] for p in module.parameters(recurse=False) if id(p) in names]
            if weights:

                def record(*_: object, name: str = weights[-1]) -> None:
                    called.append(name)

                hooks.enter_context(module.register_forward_hook(record))
        target.model(target.example())
    return called[-1]


def _channel_counts(target: Target, dims: Mapping[str, int], last: str, keep: int) -> list[int]:
    """Return how many channels of each layer to keep so that at most `keep` weights are kept."""
    shapes = {name: target.weights[name].shape for name in dims}
    widths = [shape[dims[name]] for name, shape in shapes.items()]
    costs = [shape.numel() // n for shape, n in zip(shapes.values(), widths, strict=True)]
    total = target.layout.total
    fixed = total - sum(shape.numel() for shape in shapes.values())  # output layer and vectors
    least = fixed + MIN_KEEP * sum(costs)
    if least > keep:
        raise InputError(
            f"sparsity: {keep} of {total} weights are to stay, but one channel of every layer "
            f"and the whole of {last!r} are {least}; "
            f"whole channels reach at most {1 - least / total:.9g}"
        )
    counts, left = [MIN_KEEP] * len(widths), keep - least
    queue = [((MIN_KEEP + 1) / width, layer) for layer, width in enumerate(widths)]
    heapq.heapify(queue)
    while queue:
        _, layer = heapq.heappop(queue)  # the layer with the smallest kept fraction
        if counts[layer] == widths[layer] or costs[layer] > left:
            continue  # this layer is finished: `left` only shrinks
        counts[layer] += 1
        left -= costs[layer]
        heapq.heappush(queue, ((counts[layer] + 1) / widths[layer], layer))
    return counts
