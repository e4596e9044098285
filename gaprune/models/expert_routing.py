"""Mixtures of experts: routers that leave experts without weights out, and smaller networks.

A router scores every expert for a token, and the token goes to the best `top_k` of them. A removed
expert must not be chosen: its place, and its share of the gates, belong to others. So a router gets
a hook by which it computes what it would compute without the rows of such experts.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gaprune.models.layer_kinds import weight_kind

COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")  # names of numbers of experts


@dataclass(frozen=True)
class ExpertLayer:
    """The names of a router and of the module of its experts, and how many it has and chooses."""

    router: str
    experts: str
    count: int
    per_token: int


def find_experts(model: nn.Module) -> list[ExpertLayer]:
    """Return the experts of a network, in its order: matrices `[experts, …]` beside a router.

    The router, in the same module, has one row of `weight` for each and says its `top_k`, as those
    of transformers do.
    """
    layers = []
    for path, block in model.named_modules():
        children = {f"{path}.{name}".lstrip("."): child for name, child in block.named_children()}
        for name in children:
            count = len(next(iter(matrices_of(model, name)), ()))
            routers = [other for other, child in children.items() if _routes(child, count)]
            if count and len(routers) == 1:
                chosen = int(children[routers[0]].top_k)
                layers.append(ExpertLayer(routers[0], name, count, chosen))
    return layers


def matrices_of(model: nn.Module, path: str) -> list[Tensor]:
    """Return the matrices of the experts of a module; none if it holds no experts."""
    named = model.get_submodule(path).named_parameters(recurse=False)
    kinds = ((tensor, weight_kind(model, f"{path}.{leaf}")) for leaf, tensor in named)
    return [tensor for tensor, kind in kinds if kind is not None and len(kind.rows) > 1]


def _routes(module: nn.Module, count: int) -> bool:
    weight, chosen = getattr(module, "weight", None), getattr(module, "top_k", None)
    is_table = isinstance(weight, Tensor) and weight.ndim == 2 and len(weight) == count
    return is_table and isinstance(chosen, int) and 0 < chosen <= count


class RemovedExperts:
    """A hook of a router by which it chooses no expert whose matrices are all zero."""

    def __init__(self, experts: nn.Module, names: Sequence[str], per_token: int) -> None:
        self.experts, self.names, self.per_token = experts, tuple(names), per_token

    def __call__(
        self, router: nn.Module, args: tuple[Tensor, ...], output: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...] | None:
        """Return what the router computes without removed experts; None if none is removed."""
        if torch.compiler.is_compiling() or (remains := self.remaining()).all():
            return None
        index = remains.nonzero().flatten()
        if len(index) < self.per_token:  # masks of single weights may leave too few
            return None
        smaller = copy.copy(router)  # it shares the tensors, and has dicts of its own
        smaller._parameters, smaller._buffers = {**router._parameters}, {**router._buffers}
        _keep_rows(smaller, index, len(remains))
        logits, gates, chosen = smaller.forward(*args)
        without = torch.full_like(output[0], -torch.inf)
        return without.index_copy(-1, index, logits), gates, index[chosen]

    def remaining(self) -> Tensor:
        """Return which experts have weights, bool `[experts]`."""
        matrices = [getattr(self.experts, name) for name in self.names]
        # one column each is read first: it is zero in few experts that have weights
        empty = ~torch.stack([matrix[:, :, 0].any(1) for matrix in matrices]).any(0)
        for matrix in matrices if empty.any() else ():
            empty[empty.clone()] = ~matrix[empty].flatten(1).any(1)
        return ~empty


def _keep_rows(module: nn.Module, index: Tensor, count: int) -> None:
    """Keep rows `index` of tensors that have one for each of `count` experts, in place."""
    own: tuple[dict[str, Any], ...] = module._parameters, module._buffers
    for tensors in own:
        for name, tensor in tensors.items():
            if tensor is None or tensor.ndim == 0 or len(tensor) != count:
                continue
            is_frozen = isinstance(tensor, nn.Parameter) and not tensor.requires_grad
            rows = tensor[index]
            tensors[name] = nn.Parameter(rows, requires_grad=False) if is_frozen else rows
    count_experts(module, len(index))


def count_experts(holder: object, count: int) -> None:
    """Set the number of experts that a module or a configuration states."""
    for name in COUNTS:
        if hasattr(holder, name):
            setattr(holder, name, count)


def leave_out_removed(model: nn.Module) -> None:
    """Give the routers of a network `RemovedExperts`, in place; the dense network stays the same.

    A layer that has an expert without weights when it is loaded goes on choosing it.
    """
    for layer in find_experts(model):
        experts = model.get_submodule(layer.experts)
        ids = {id(matrix) for matrix in matrices_of(model, layer.experts)}
        names = [name for name, p in experts.named_parameters(recurse=False) if id(p) in ids]
        hook = RemovedExperts(experts, names, layer.per_token)
        if hook.remaining().all():
            model.get_submodule(layer.router).register_forward_hook(hook)


@torch.no_grad()
def remove_experts(model: nn.Module, remaining: Mapping[str, Tensor]) -> None:
    """Remove experts and the rows of their routers from a network, in place; it is frozen then.

    `remaining` are by the name of the experts' module the indices that stay, int64, ascending.
    """
    model.requires_grad_(False)
    for layer in find_experts(model):
        for path in (layer.router, layer.experts):
            _keep_rows(model.get_submodule(path), remaining[layer.experts], layer.count)
