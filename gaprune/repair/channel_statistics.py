"""Mean and variance of a tensor per channel, and how two such statistics compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

DEAD = 1e-3  # a channel whose spread is a smaller fraction of the layer's has no scale to match
SMOOTHING = 1e-3  # fraction of the layer's mean variance added to every channel's in the loss
_HALF_TYPES = (torch.float16, torch.bfloat16)


class ChannelStatistics(NamedTuple):
    """Per-channel statistics of one tensor, float32 or float64."""

    entries: int  # number of values per channel
    mean: Tensor  # has the rank of the tensor, with size 1 on every axis that is no channel axis
    var: Tensor  # biased variance (divided by `entries`), of the same shape


def channel_statistics(values: Tensor, channels: Sequence[int]) -> ChannelStatistics:
    """Return the statistics of `values` over all axes except `channels` (indices from 0).

    Differentiable. Half precision is converted to float32 first.
    """
    wide = values.float() if values.dtype in _HALF_TYPES else values
    axes = tuple(axis for axis in range(values.ndim) if axis not in channels)
    if not axes:  # one value per channel
        return ChannelStatistics(1, wide, torch.zeros_like(wide))
    var, mean = torch.var_mean(wide, axes, correction=0, keepdim=True)
    return ChannelStatistics(values.numel() // mean.numel(), mean, var)


def pool_statistics(parts: Sequence[ChannelStatistics]) -> ChannelStatistics:
    """Return the statistics of all values of several chunks (law of total variance)."""
    if len(parts) == 1:
        return parts[0]
    total = sum(part.entries for part in parts)
    dtype = parts[0].mean.dtype
    shares = torch.tensor([part.entries / total for part in parts], dtype=torch.float64)
    shares = shares.to(parts[0].mean.device)
    # float64: the variance of the means is a small difference of large numbers.
    means = torch.stack([part.mean for part in parts], dim=-1).double()
    variances = torch.stack([part.var for part in parts], dim=-1).double()
    mean = means @ shares
    # var = E[var of a chunk] + var[mean of a chunk]
    variances = variances + (means - mean.unsqueeze(-1)).square()
    return ChannelStatistics(total, mean.to(dtype), (variances @ shares).to(dtype))


def std_ratio(
    dense: ChannelStatistics, pruned: ChannelStatistics, limit: Tensor | None = None
) -> Tensor:
    """Return σ_dense ÷ σ_pruned per channel: the factor that restores the dense spread.

    The factor is 1 where either spread is below `DEAD` of the layer's root mean square, or lost in
    rounding: a channel that does not vary on the calibration inputs has no measurable scale, and
    the quotient would amplify noise or silence the channel. `limit` `[channels]` bounds the factor.
    """
    # torch.where on both sides of the quotient, so that no 0 ÷ 0 enters the gradient.
    both_vary = _varies(dense) & _varies(pruned)
    ones = torch.ones_like(pruned.var)
    squared = torch.where(both_vary, dense.var, ones) / torch.where(both_vary, pruned.var, ones)
    ratio = squared.sqrt()
    return ratio if limit is None else torch.minimum(ratio, limit.view(ratio.shape))


def statistics_loss(dense: ChannelStatistics, pruned: ChannelStatistics) -> Tensor:
    """Return KL(pruned ‖ dense) between Gaussians in nats, averaged over channels, a scalar.

    ½ (σp²/σd² − 1 − ln σp²/σd² + (μp − μd)²/σd²). Differentiable in `pruned`. The loss is 0 where
    the dense values are constant: then there is no scale in which to measure a difference.
    """
    # One unit for the whole layer; a single channel may be constant.
    spread = dense.var.mean()
    if not spread > 0:
        return torch.zeros_like(spread)
    # The smoothing keeps the logarithm and the quotients finite for channels without variance.
    variance = dense.var + SMOOTHING * spread
    ratio = (pruned.var + SMOOTHING * spread) / variance
    offset = (pruned.mean - dense.mean).square() / variance
    divergence: Tensor = 0.5 * (ratio - 1 - ratio.log() + offset).mean()
    return divergence


def _varies(statistics: ChannelStatistics) -> Tensor:
    # Four units in the last place of the mean: a smaller spread is only rounding error.
    rounding = 4 * torch.finfo(statistics.var.dtype).eps * statistics.mean
    threshold = torch.maximum(DEAD**2 * statistics.var.mean(), rounding.square())
    return statistics.var > threshold
