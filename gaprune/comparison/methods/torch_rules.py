"""Rules of the kind of torch.nn.utils.prune, applied to a whole network that stays as it is.

| torch.nn.utils.prune  | here                                                          |
|-----------------------|---------------------------------------------------------------|
| `random_unstructured` | `PruningRule(amount, where, "random")`                               |
| `l1_unstructured`     | `PruningRule(amount, where)`                                         |
| `random_structured`   | `PruningRule(amount, where, "random", dim=dim)`                      |
| `ln_structured`       | `PruningRule(amount, where, dim=dim, norm=n)`                        |
| `global_unstructured` | `PruningRule(amount, scope="global")`                                |
| `custom_from_mask`    | `start={name: mask}`                                          |
| `PruningContainer`    | several rules; or the masks found so far as `start`           |
| `remove`              | `gaprune.bake` after `gaprune.attach`                         |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from gaprune.comparison.methods.structured import along, check_dim, check_norm, slice_norms
from gaprune.criteria import CRITERIA, DenseNetwork, score
from gaprune.errors import InputError, unknown_name
from gaprune.masks.supermask import Layout, check_mask, top_k_mask
from gaprune.models.target import Target

Names = list[str]

SCOPES: dict[str, Callable[[Names], list[Names]]] = {
    "layer": lambda names: [[name] for name in names],
    "global": lambda names: [names],
}
"""What a rule's amount is a part of: each matching parameter, or all of them ranked together."""


@dataclass(frozen=True)
class PruningRule:
    """What to remove, from where, and what goes first.

    Attributes:
        amount: of what is still there, a float in (0, 1): that fraction, rounded half to even as
            torch does; an int from 1: that many. Weights, or whole slices with `dim`.
        where: a glob of qualified parameter names (`fc1.weight`, `*.bias`), or a layer type, with
            or without the parameter's name in it (`Conv2d`, `Linear.weight`; base classes count).
            It chooses among the prunable parameters of the target.
        criterion: a key of `CRITERIA`; the lowest scores go first, of equal ones the last.
        scope: a key of `SCOPES`. Norms of slices are ranked as they are, so a global rule with
            `dim` prefers layers with larger slices.
        dim: None for single weights, or the dimension along which whole slices go.
        norm: 1, 2 or inf: what makes one score of a slice; without `dim` it says nothing.
    """

    amount: float
    where: str = "*"
    criterion: str = "magnitude"
    scope: str = "layer"
    dim: int | None = None
    norm: float = 2.0

    def __post_init__(self) -> None:
        whole = isinstance(self.amount, int) and not isinstance(self.amount, bool)
        sound = (
            self.amount >= 1 if whole else isinstance(self.amount, float) and 0 < self.amount < 1
        )
        if not sound:
            raise InputError(
                "amount: must be a fraction strictly between 0 and 1, or a whole number from 1 "
                f"(how many), got {self.amount!r}"
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

    As in torch's `PruningContainer`: a criterion scores the network that is left, removed weights
    being zero; a rule for single weights looks at the remaining ones, a rule for slices at those
    that still hold a weight. Masks are those of torch wherever no two scores are equal: of equal
    ones the later index goes first, where torch leaves it open. Scores are float32. A rule may
    empty a layer, as in torch. Slices have the norm of their scores; of a criterion that gives
    negative scores, the scores are raised until the smallest one is zero. `random` draws one number
    for a slice.

    Args:
        target: the dense network; stays as it is.
        rules: applied in order.
        calibration inputs: inputs `[N, …]` for the criteria that show some to the network.
        generator: the only source of randomness.
        start: custom masks to begin with, of any prunable parameters: name → bool.

    Returns:
        Parameter name → bool mask of its shape, for every prunable parameter.

    Raises:
        InputError: a rule matches nothing (the message says what would, and what to add to
            `prune_also`), asks for more than is left, or needs calibration inputs; a mask that does not fit.
        GapruneError: a criterion gives scores that are not finite.
    """
    matches = [matching(target, rule.where) for rule in rules]
    for rule, names in zip(rules, matches, strict=True):
        if rule.criterion not in CRITERIA:
            raise unknown_name("criterion", rule.criterion, CRITERIA)
        for name in names if rule.dim is not None else ():
            check_dim(target.weights[name].shape, rule.dim or 0, name)
    masks = _begin(target, start or {})
    for rule, names in zip(rules, matches, strict=True):
        masks |= _apply(_Pruning(target, masks, calibration, generator), rule, names)
    return masks


def matching(target: Target, where: str) -> Names:
    """Return the prunable parameters that `PruningRule.where` means, in the target's order.

    Raises:
        InputError: none.
    """
    known = _known_as(target.model)
    found = [name for name, terms in known.items() if any(fnmatchcase(t, where) for t in terms)]
    prunable = [name for name in target.layout.names if name in found]
    if prunable:
        return prunable
    if found:
        raise InputError(
            f"where: {where!r} matches {', '.join(found)}, not prunable in this target; "
            f"load it with prune_also={found}"
        )
    types = sorted({term for name in target.weights for term in known[name] if "." not in term})
    raise InputError(
        f"where: {where!r} matches no parameter; prunable are {', '.join(target.layout.names)} "
        f"in layers of type {', '.join(types)}"
    )


def _known_as(model: nn.Module) -> dict[str, set[str]]:
    """Return every parameter with all that may be said of it: names, layer types, both."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    terms: dict[str, set[str]] = {name: set() for name in first.values()}
    for path, module in model.named_modules(remove_duplicate=False):
        types = [t.__name__ for t in type(module).__mro__ if issubclass(t, nn.Module)]
        types.remove(nn.Module.__name__)
        for leaf, parameter in module.named_parameters(recurse=False):
            terms[first[id(parameter)]] |= {
                f"{path}.{leaf}".lstrip("."),
                *types,
                *(f"{name}.{leaf}" for name in types),
            }
    return terms


def _begin(target: Target, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, mask in start.items():
        if name not in target.weights:
            raise InputError(
                f"start: {name!r} is not prunable in this target, which has "
                f"{', '.join(target.weights)}; load it with prune_also"
            )
        shape = target.weights[name].shape
        check_mask(f"start[{name!r}]", mask, shape)
    return {
        name: start[name].to(weight.device).clone()
        if name in start
        else torch.ones_like(weight, dtype=torch.bool)
        for name, weight in target.weights.items()
    }


@dataclass(frozen=True, eq=False)
class _Pruning:
    """The network as the rules so far have left it."""

    target: Target
    masks: Mapping[str, Tensor]
    calibration: Tensor | None
    generator: torch.Generator

    def scores(self, criterion: str, names: Names, density: float) -> dict[str, Tensor]:
        """Score the named weights; those that are gone count as zero in the network."""
        model = self.target.masked_copy(self.masks)
        weights = {name: model.get_parameter(name).detach() for name in names}
        network = DenseNetwork(model, weights, Layout.of(weights), self.target.inputs)
        flat = score(criterion, network, self.calibration, self.generator, density)
        return network.layout.split(flat)


def _apply(state: _Pruning, rule: PruningRule, names: Names) -> dict[str, Tensor]:
    """Return the new masks of the parameters that a rule matches."""
    there = {name: _units(state.masks[name], rule.dim) for name in names}
    groups = SCOPES[rule.scope](names)
    keeps = [
        _keep(rule, group, sum(int(there[n].count_nonzero()) for n in group)) for group in groups
    ]
    units = sum(alive.numel() for alive in there.values())
    density = max(sum(keeps), 1) / units
    scores = (_single if rule.dim is None else _of_slices)(state, rule, names, density)
    masks = {}
    for group, keep in zip(groups, keeps, strict=True):
        stay = torch.cat([there[name] for name in group])
        stay[stay.clone()] = top_k_mask(torch.cat([scores[name] for name in group])[stay], keep)
        parts = stay.split([there[name].numel() for name in group])
        for name, part in zip(group, parts, strict=True):
            mask = state.masks[name]
            masks[name] = mask & (
                part.view(mask.shape) if rule.dim is None else along(part, mask.ndim, rule.dim)
            )
    return masks


def _units(mask: Tensor, dim: int | None) -> Tensor:
    """Return which weights, or slices, still hold anything: bool, flat."""
    return mask.flatten() if dim is None else mask.movedim(dim, 0).flatten(1).any(dim=1)


def _keep(rule: PruningRule, group: Names, left: int) -> int:
    remove = rule.amount if isinstance(rule.amount, int) else round(rule.amount * left)
    if remove > left:
        what = "weights" if rule.dim is None else f"slices along dimension {rule.dim}"
        raise InputError(
            f"amount: {rule.amount} is more than the {left} {what} that are left of "
            f"{', '.join(group)}; name fewer, or a fraction"
        )
    return left - remove


def _single(state: _Pruning, rule: PruningRule, names: Names, density: float) -> dict[str, Tensor]:
    scores = state.scores(rule.criterion, names, density)
    return {name: values.flatten() for name, values in scores.items()}


def _of_slices(
    state: _Pruning, rule: PruningRule, names: Names, density: float
) -> dict[str, Tensor]:
    return _SLICE_SCORES.get(rule.criterion, _norms)(state, rule, names, density)


def _norms(state: _Pruning, rule: PruningRule, names: Names, density: float) -> dict[str, Tensor]:
    assert rule.dim is not None
    scores = state.scores(rule.criterion, names, density)
    lowest = min(0.0, *(float(values.min()) for values in scores.values()))
    return {
        name: slice_norms((values - lowest) * state.masks[name], rule.dim, rule.norm)
        for name, values in scores.items()
    }


def _drawn(state: _Pruning, rule: PruningRule, names: Names, density: float) -> dict[str, Tensor]:
    """Draw one number per slice: norms of random scores would favour slices that hold more."""
    assert rule.dim is not None
    return {
        name: torch.rand(mask.shape[rule.dim], generator=state.generator).to(mask.device)
        for name, mask in state.masks.items()
        if name in names
    }


_SLICE_SCORES = {"random": _drawn}
