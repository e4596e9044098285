"""From scores to masks, and from masks to a masked network; the weights stay frozen.

A *supermask* keeps the k best-scored weights (Zhou et al. 2019; Ramanujan et al. 2020, eq. 4).
Scores and masks are held flat: one vector over all prunable weights, layer after layer in the
order of `Layout.names`, so that a budget over the whole network is one partition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from gaprune.errors import InputError

MIN_KEEP = 1  # no layer is ever emptied: a layer without weights cuts the network in two


@dataclass(frozen=True)
class Layout:
    """Where each prunable parameter lies in a flat vector.

    Attributes:
        names: qualified parameter names, in the order of the flat vector.
        shapes: the shape of each.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> Layout:
        """Return the layout of named weights, in their order."""
        return cls(tuple(weights), tuple(tuple(weight.shape) for weight in weights.values()))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Weights per layer."""
        return tuple(int(np.prod(shape, dtype=np.int64)) for shape in self.shapes)

    @property
    def total(self) -> int:
        """All prunable weights."""
        return sum(self.sizes)

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """Where each layer lies in the flat vector."""
        ends = np.cumsum(self.sizes).tolist()
        return tuple(slice(end - size, end) for end, size in zip(ends, self.sizes, strict=True))

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Views `[total]` → name → the layer's own shape; nothing is copied."""
        return {
            name: flat[part].view(shape)
            for name, part, shape in zip(self.names, self.slices, self.shapes, strict=True)
        }

    def flatten(self, layers: Mapping[str, Tensor]) -> Tensor:
        """Name → tensor of the layer's shape, joined to one vector `[total]`."""
        return torch.cat([layers[name].reshape(-1) for name in self.names])


def top_k_mask(scores: Tensor, keep: int) -> Tensor:
    """Mark the `keep` largest scores; ties are kept in index order.

    Args:
        scores: any shape, any real dtype, no NaN.
        keep: how many, 0 to `scores.numel()`.

    Returns:
        A bool mask of the same shape and device with exactly `keep` entries true.

    A partition finds the threshold in linear time; all above it stay and the ties at it are filled
    in index order, so the result is the same on every device and dtype (`torch.topk` picks tied
    indices arbitrarily).
    """
    total = scores.numel()
    if not 0 <= keep <= total:
        raise InputError(f"keep: must be from 0 to the {total} scores, got {keep}")
    if keep in (0, total):
        return torch.full_like(scores, keep == total, dtype=torch.bool)
    flat = scores.detach().reshape(-1)
    threshold = _kth_largest(flat, keep)
    mask = flat >= threshold
    surplus = int(mask.count_nonzero()) - keep
    if surplus:
        tied = (flat == threshold).nonzero().flatten()
        mask[tied[len(tied) - surplus :]] = False
    return mask.view(scores.shape)


def _kth_largest(flat: Tensor, k: int) -> Tensor:
    if flat.device.type == "cpu" and flat.dtype in (torch.float32, torch.float64):
        values = flat.numpy()  # numpy's partition is some ten times faster than torch.kthvalue
        return flat.new_tensor(np.partition(values, len(values) - k)[len(values) - k].item())
    wide = flat if flat.dtype == torch.float64 else flat.float()  # half kthvalue is not everywhere
    return wide.kthvalue(len(flat) - k + 1).values.to(flat.dtype)


def layered_mask(scores: Tensor, layout: Layout, counts: Sequence[int]) -> Tensor:
    """Mark the `counts[i]` best scores of each layer i in a flat score vector `[total]`."""
    parts = [top_k_mask(scores[part], n) for part, n in zip(layout.slices, counts, strict=True)]
    return torch.cat(parts)


def global_mask(scores: Tensor, layout: Layout, keep: int) -> Tensor:
    """Mark the `keep` best scores of the whole network, at least `MIN_KEEP` in every layer."""
    mask = top_k_mask(scores, keep)
    counts = layer_counts(mask, layout)
    if min(counts) >= MIN_KEEP:
        return mask
    forced = torch.zeros_like(mask)
    for part, count in zip(layout.slices, counts, strict=True):
        if count < MIN_KEEP:
            forced[part] = top_k_mask(scores[part], MIN_KEEP)
    lifted = torch.where(forced, torch.full_like(scores, torch.inf), scores)
    return top_k_mask(lifted, keep)


def layer_counts(mask: Tensor, layout: Layout) -> list[int]:
    """Kept weights per layer of a flat mask `[total]`."""
    return [int(mask[part].count_nonzero()) for part in layout.slices]


def pack(mask: Tensor) -> np.ndarray:
    """Return a bool mask `[n]` as ⌈n/8⌉ bytes, for small messages and hashing."""
    return np.packbits(mask.cpu().numpy())


def unpack(bits: np.ndarray, total: int) -> Tensor:
    """Return the bool mask `[total]` that `pack` packed."""
    return torch.from_numpy(np.unpackbits(bits, count=total).astype(bool))


def masked_weights(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Zero the dropped weights; kept ones stay bit-identical (inf · 0 would be NaN, so `where`)."""
    return {
        name: torch.where(masks[name], weight, weight.new_zeros(()))
        for name, weight in weights.items()
    }


def masked_forward(
    model: nn.Module, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], inputs: Tensor
) -> Tensor:
    """Run `model` with only the kept weights, leaving the model itself untouched."""
    outputs: Tensor = functional_call(model, masked_weights(weights, masks), (inputs,))
    return outputs


class Supermask(nn.Module):
    """A parametrization that shows its parameter through a fixed mask (`attach` registers it)."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(self.mask, weight, weight.new_zeros(()))


def attach(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Put a supermask on live parameters, in place; `bake` or `detach` takes it off again.

    Args:
        model: any module; the named parameters keep their dense values underneath.
        masks: qualified parameter name → bool tensor of the parameter's shape.

    Raises:
        InputError: a name that is no parameter, a mask of another shape or dtype.
    """
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in parameters:
            raise InputError(f"masks: {name!r} is no parameter of the model; it has {', '.join(parameters)}")
        if mask.dtype != torch.bool or mask.shape != parameters[name].shape:
            raise InputError(
                f"masks[{name!r}]: must be bool of shape {tuple(parameters[name].shape)}, "
                f"got {mask.dtype} of shape {tuple(mask.shape)}"
            )
    for name, mask in masks.items():
        path, _, leaf = name.rpartition(".")
        supermask = Supermask(mask.to(parameters[name].device))
        parametrize.register_parametrization(model.get_submodule(path), leaf, supermask)
    return model


def bake(model: nn.Module) -> nn.Module:
    """Write every attached supermask into its parameter (dropped weights become 0), in place."""
    return _remove_supermasks(model, keep_masked=True)


def detach(model: nn.Module) -> nn.Module:
    """Take every attached supermask off; the dense parameters come back bit for bit, in place."""
    return _remove_supermasks(model, keep_masked=False)


def _remove_supermasks(model: nn.Module, *, keep_masked: bool) -> nn.Module:
    for module in list(model.modules()):
        if not parametrize.is_parametrized(module):
            continue
        for leaf, chain in list(module.parametrizations.items()):  # type: ignore[union-attr, operator]
            if any(isinstance(step, Supermask) for step in chain):
                parametrize.remove_parametrizations(module, leaf, leave_parametrized=keep_masked)
    return model
