"""Mean and spread of a tensor per channel, and the factor that carries one spread to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

DEAD = 1e-3  # a channel whose spread is a smaller part of the layer's has no scale to match
LEAST = 1e-3  # part of the layer's mean variance that every channel's is counted with, for `statistics_loss`
_HALVES = (torch.float16, torch.bfloat16)


class Moments(NamedTuple):
    """Per-channel statistics of one tensor, float32 or float64.

    Attributes:
        entries: values per channel.
        mean: of the tensor's rank, with size 1 on every axis that is no channel axis.
        var: of the same shape, divided by their number (biased).
    """

    entries: int
    mean: Tensor
    var: Tensor


def measure(values: Tensor, channels: Sequence[int]) -> Moments:
    """Return the moments of `values` over all axes but `channels` (indices from 0).

    Differentiable. Half precision is measured in float32.
    """
    wide = values.float() if values.dtype in _HALVES else values
    axes = tuple(axis for axis in range(values.ndim) if axis not in channels)
    if not axes:  # one value per channel
        return Moments(1, wide, torch.zeros_like(wide))
    var, mean = torch.var_mean(wide, axes, correction=0, keepdim=True)
    return Moments(values.numel() // mean.numel(), mean, var)


def pool(parts: Sequence[Moments]) -> Moments:
    """Join the moments of several chunks to those of all their values (law of total variance)."""
    if len(parts) == 1:
        return parts[0]
    total = sum(part.entries for part in parts)
    dtype = parts[0].mean.dtype
    shares = torch.tensor([part.entries / total for part in parts], dtype=torch.float64)
    means = torch.stack([part.mean for part in parts], dim=-1).double()
    squares = torch.stack([part.var for part in parts], dim=-1).double()
    mean = means @ shares.to(means.device)
    squares = squares + (means - mean.unsqueeze(-1)).square()
    return Moments(total, mean.to(dtype), (squares @ shares.to(means.device)).to(dtype))


def gain(dense: Moments, pruned: Moments, most: Tensor | None = None) -> Tensor:
    """Return σd ÷ σp per channel, at most `most`: what the pruned deviations are multiplied by.

    1 where either spread is below `DEAD` of the layer's root mean square, or lost in rounding: a
    channel that does not move on the calibration inputs tells nothing about its scale, and the quotient would
    amplify noise or cut the channel off.

    Args:
        dense: moments in the dense network.
        pruned: moments of the same tensor in the pruned one.
        most: `[channels]`, or None for no limit.
    """
    alive = _alive(dense) & _alive(pruned)
    one = torch.ones_like(pruned.var)
    squared = torch.where(alive, dense.var, one) / torch.where(alive, pruned.var, one)
    found = squared.sqrt()
    return found if most is None else torch.minimum(found, most.view(found.shape))


def statistics_loss(dense: Moments, pruned: Moments) -> Tensor:
    """Return KL(pruned ‖ dense) between Gaussians in nats, mean over channels, a scalar.

    ½ (σp²/σd² − 1 − ln σp²/σd² + (μp − μd)²/σd²). Differentiable in `pruned`. 0 where the dense
    network puts out constants alone: they have no unit to measure in.
    """
    spread = dense.var.mean()
    if not spread > 0:
        return torch.zeros_like(spread)
    variance = dense.var + LEAST * spread
    ratio = (pruned.var + LEAST * spread) / variance
    off_centre = (pruned.mean - dense.mean).square() / variance
    divergence: Tensor = 0.5 * (ratio - 1 - ratio.log() + off_centre).mean()
    return divergence


def _alive(moments: Moments) -> Tensor:
    rounding = 4 * torch.finfo(moments.var.dtype).eps * moments.mean
    return moments.var > torch.maximum(DEAD**2 * moments.var.mean(), rounding.square())
