"""From scores to masks, and from masks to a masked network; the weights stay frozen.

A *supermask* keeps the k weights with the highest scores (Zhou et al. 2019; Ramanujan et al. 2020,
eq. 4). Scores and masks are flat: one vector over all prunable weights, layer after layer in the
order of `Layout.names`, so that a global budget is a single partition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from math import ceil

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gaprune.errors import InputError, unknown_name
from gaprune.masks.mac_budget import MacCost
from gaprune.masks.n_of_m import NOfM
from gaprune.masks.top_k import write_top_k

MIN_KEEP = 1  # per layer: a layer without weights would cut the network in two
PIECE = 1 << 20  # weights of a layer that are masked at once
_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}  # bytes → the type of this size


@dataclass(frozen=True)
class Layout:
    """The position of each prunable parameter in a flat vector, and rules for its masks.

    Attributes:
        names: qualified parameter names, in the order of the flat vector.
        shapes: the shape of each.
        floor: the fraction of every layer, in [0, 1), that every mask keeps.
        n_of_m: the N:M pattern of every mask, or None.
        mac_cost: cost of units, where the budget is in multiply-adds; None counts entries.
        fixed_counts: how many entries every mask keeps of each layer, None for layers that share
            the rest of the budget; empty if no layer is fixed.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    floor: float = 0.0
    n_of_m: NOfM | None = None
    mac_cost: MacCost | None = None
    fixed_counts: tuple[int | None, ...] = ()

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> Layout:
        """Return the layout of named weights, in their order."""
        return cls(tuple(weights), tuple(tuple(weight.shape) for weight in weights.values()))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Entries per layer."""
        return tuple(int(np.prod(shape, dtype=np.int64)) for shape in self.shapes)

    @cached_property
    def min_counts(self) -> tuple[int, ...]:
        """The fewest weights of each layer: its floor rounded up, at least `MIN_KEEP`."""
        fraction = Fraction(str(float(self.floor)))  # the decimal as written: 0.1 is a tenth
        least = tuple(max(MIN_KEEP, ceil(size * fraction)) for size in self.sizes)
        return self._with_fixed(least)

    @cached_property
    def max_counts(self) -> tuple[int, ...]:
        """The most weights that masks keep of each layer: its size, unless its count is fixed."""
        return self._with_fixed(self.sizes)

    def _with_fixed(self, counts: tuple[int, ...]) -> tuple[int, ...]:
        if not self.fixed_counts:
            return counts
        pairs = zip(counts, self.fixed_counts, strict=True)
        return tuple(count if fixed is None else fixed for count, fixed in pairs)

    def permits(self, counts: Sequence[int]) -> bool:
        """Return whether no layer keeps fewer than its minimum or more than its maximum."""
        bounds = zip(self.min_counts, counts, self.max_counts, strict=True)
        return all(low <= count <= high for low, count, high in bounds)

    def with_floor(self, fraction: float) -> Layout:
        """Return the same layers with another floor."""
        return replace(self, floor=fraction)

    @property
    def total(self) -> int:
        """Number of all entries."""
        return sum(self.sizes)

    @property
    def dense_cost(self) -> int:
        """The cost of keeping everything, in the unit of budgets: entries or multiply-adds."""
        return self.total if self.mac_cost is None else self.mac_cost.dense

    @property
    def min_cost(self) -> int:
        """The cost of the smallest possible mask, in the same unit."""
        least = self.min_counts
        return sum(least) if self.mac_cost is None else self.mac_cost.min_macs(least)

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """The position of each layer in the flat vector."""
        # Slices are views: splitting a flat vector copies nothing.
        ends = np.cumsum(self.sizes).tolist()
        return tuple(slice(end - size, end) for end, size in zip(ends, self.sizes, strict=True))

    def satisfies_pattern(self, mask: Tensor) -> bool:
        """Return whether a flat mask follows the N:M pattern, if there is one."""
        return self.n_of_m is None or self.n_of_m.holds(mask, self.slices, self.shapes)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Return views of a flat tensor `[total]` by name, in the shape of each layer."""
        return {
            name: flat[part].view(shape)
            for name, part, shape in zip(self.names, self.slices, self.shapes, strict=True)
        }

    def flatten(self, layers: Mapping[str, Tensor]) -> Tensor:
        """Join tensors of the layers' shapes to one vector `[total]`."""
        return torch.cat([layers[name].reshape(-1) for name in self.names])


def top_k_mask(scores: Tensor, keep: int) -> Tensor:
    """Return a bool mask of the `keep` largest scores, of any shape; ties are kept in index order.

    A partition finds the threshold in linear time. The result is the same on every device and
    dtype; `torch.topk` chooses among ties arbitrarily.

    Raises:
        InputError: `keep` is out of range, or a score is NaN.
    """
    mask = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    write_top_k(scores.detach().reshape(-1), keep, mask.view(-1))
    return mask


def layered_mask(scores: Tensor, layout: Layout, counts: Sequence[int]) -> Tensor:
    """Mark the `counts[i]` best scores of each layer i in a flat score vector `[total]`."""
    flat = scores.detach()
    mask = torch.empty(layout.total, dtype=torch.bool, device=scores.device)
    for part, keep in zip(layout.slices, counts, strict=True):
        write_top_k(flat[part], keep, mask[part])
    return mask


def global_mask(scores: Tensor, layout: Layout, keep: int) -> Tensor:
    """Mark the `keep` best scores of the network, between minimum and maximum in every layer.

    If the layout has a `mac_cost`, `keep` is in multiply-adds; see `MacCost.global_counts`.

    Raises:
        InputError: `keep` is out of range or too small for the layers, or a score is NaN.
    """
    if layout.mac_cost is not None:
        counts = layout.mac_cost.global_counts(scores, layout.slices, layout.min_counts, keep)
        return layered_mask(scores, layout, counts)
    mask = top_k_mask(scores, keep)
    if layout.permits(layer_counts(mask, layout)):
        return mask
    least = sum(layout.min_counts)
    if keep < least:
        each = f"{MIN_KEEP} in" if layout.floor == 0 else f"the floor {layout.floor} of"
        raise InputError(
            f"keep: must be at least {least}, {each} each of {len(layout.names)} layers, got {keep}"
        )
    # Reserve the best of every layer, not only of starved ones: filling those up would otherwise
    # take weights from layers that are just at their minimum.
    mask = layered_mask(scores, layout, layout.min_counts)
    rest = ~mask
    for part, fixed in zip(layout.slices, layout.fixed_counts, strict=False):
        if fixed is not None:
            rest[part] = False
    mask[rest] = top_k_mask(scores[rest], keep - least)
    return mask


def layer_counts(mask: Tensor, layout: Layout) -> list[int]:
    """Return the number of kept weights per layer of a flat mask `[total]`."""
    bits = mask.cpu().numpy()  # numpy counts bools faster than torch
    return [int(np.count_nonzero(bits[part])) for part in layout.slices]


def pack(mask: Tensor) -> np.ndarray:
    """Return a bool mask `[n]` as ⌈n/8⌉ bytes, for messages and hashes."""
    return np.packbits(mask.cpu().numpy())


def unpack(bits: np.ndarray, total: int) -> Tensor:
    """Return the bool mask `[total]` that `pack` packed."""
    return torch.from_numpy(np.unpackbits(bits, count=total).view(np.bool_))


def check_mask(argument: str, mask: Tensor, shape: torch.Size) -> None:
    """Raise `InputError` unless `mask` is bool and of this shape; `argument` starts the message."""
    if mask.dtype != torch.bool or mask.shape != shape:
        raise InputError(
            f"{argument}: must be bool of shape {tuple(shape)}, "
            f"got {mask.dtype} of shape {tuple(mask.shape)}"
        )


def check_masks(masks: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Raise `InputError` unless every mask belongs to a named weight and fits it."""
    for name, mask in masks.items():
        if name not in weights:
            raise unknown_name("masks", name, weights)
        check_mask(f"masks[{name!r}]", mask, weights[name].shape)


def masked_weights(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with dropped ones set to 0; kept ones are bit-identical."""
    return {name: _masked(weight, masks[name]) for name, weight in weights.items()}


def _masked(weight: Tensor, mask: Tensor) -> Tensor:
    # Not a product of floats: inf · 0 would be NaN.
    integer = _INTEGERS.get(weight.itemsize) if weight.is_floating_point() else None
    same_strides = weight.stride() == mask.stride()[mask.ndim - weight.ndim :]
    if integer is None or not same_strides or (weight.requires_grad and torch.is_grad_enabled()):
        return torch.where(mask, weight, weight.new_zeros(()))
    # Five times faster with the same bits: 1 · n is n, and integer 0 has the bits of +0.
    bits = weight.detach().view(integer)
    small = bits.numel() <= PIECE or bits.device.type != "cpu"
    if small or mask.shape != bits.shape:
        return torch.mul(mask, bits).view(weight.dtype)
    masked = torch.empty_like(bits)  # in pieces: torch makes an integer copy of the mask
    rows = max(1, PIECE * len(bits) // bits.numel())
    for pieces in zip(mask.split(rows), bits.split(rows), masked.split(rows), strict=True):
        torch.mul(*pieces[:2], out=pieces[2])
    return masked.view(weight.dtype)


_PER_CLASS = ("__dict__", "__weakref__")  # what Python makes for every class


class Supermask(nn.Module):
    """A parametrization that masks its parameter (`attach` registers it).

    `order` are the names of the module's parameters before, because torch moves a parameter to the
    end when the parametrization is removed; optimizers identify parameters by position.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, order: Sequence[str]) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.order = tuple(order)

    def forward(self, weight: Tensor) -> Tensor:
        """Set dropped weights to 0; kept weights are bit-identical."""
        return torch.where(self.mask, weight, weight.new_zeros(()))


def attach(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Mask parameters of a model in place; `bake` or `detach` removes the masks.

    Args:
        model: any module; the named parameters keep their dense values internally.
        masks: qualified name → bool tensor of the parameter's shape; a tied parameter has one mask.

    Raises:
        InputError: a name that is no parameter or is masked already, a mask of another shape or
            dtype.
    """
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in parameters:
            path, dot, leaf = name.rpartition(".")
            if f"{path}{dot}parametrizations.{leaf}.original" in parameters:
                raise InputError(
                    f"masks: {name!r} is masked already; call gaprune.bake or gaprune.detach first"
                )
            raise InputError(
                f"masks: {name!r} is not a parameter of the model; it has {', '.join(parameters)}"
            )
        check_mask(f"masks[{name!r}]", mask, parameters[name].shape)
    by_id = {id(parameters[name]): mask.to(parameters[name].device) for name, mask in masks.items()}
    uses = [
        (module, leaf, by_id[id(parameter)], tuple(module._parameters))
        for module in model.modules()
        for leaf, parameter in module._parameters.items()
        if id(parameter) in by_id
    ]
    for module, leaf, mask, order in uses:
        parametrize.register_parametrization(module, leaf, Supermask(mask, order))
    return model


def bake(model: nn.Module) -> nn.Module:
    """Make every attached mask permanent, in place: dropped weights become 0."""
    return _remove_supermasks(model, keep_masked=True)


def detach(model: nn.Module) -> nn.Module:
    """Remove every attached mask, in place; the dense parameters return bit for bit."""
    return _remove_supermasks(model, keep_masked=False)


def _remove_supermasks(model: nn.Module, *, keep_masked: bool) -> nn.Module:
    for module in list(model.modules()):
        if not parametrize.is_parametrized(module):
            continue
        for leaf, chain in list(module.parametrizations.items()):  # type: ignore[union-attr, operator]
            supermasks = [step for step in chain if isinstance(step, Supermask)]
            if supermasks:
                # torch changes the class that it made for this layer, which copies share
                members = {k: v for k, v in vars(type(module)).items() if k not in _PER_CLASS}
                module.__class__ = type(type(module).__name__, type(module).__bases__, members)
                parametrize.remove_parametrizations(module, leaf, leave_parametrized=keep_masked)
                for name in supermasks[0].order:
                    if name in module._parameters:
                        module._parameters[name] = module._parameters.pop(name)
    return model
