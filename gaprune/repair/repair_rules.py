"""Which modules can be repaired without changing a weight, and what is written into each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from gaprune.repair.channel_statistics import ChannelStatistics, std_ratio

STATISTICS = "statistics"  # BatchNorm running statistics: inputs get the dense mean and variance
BIAS = "bias"  # of linear, convolution and attention layers: the dense ratio of mean to spread
NORM = "norm"  # weight and bias of layer and group norms: outputs get the dense statistics

Correction = tuple[Tensor, Tensor]
"""Factor and shift per channel: x → factor · x + shift, broadcast against the corrected tensor."""


@dataclass(frozen=True)
class RepairRule:
    """How one type of module is repaired.

    Attributes:
        part: `STATISTICS`, `BIAS` or `NORM`.
        leaves: the module's parameters and buffers that repair changes.
        missing: the reason to report for a module that lacks them.
        at_input: whether the module's first input is corrected, or its output.
        channels: (module, rank of the corrected tensor) → its channel axes.
        correct: (module, dense statistics, pruned statistics) → correction.
        fold: (module, factor, shift), both float64 → values of the leaves with which the module
            applies that correction itself.
    """

    part: str
    leaves: tuple[str, ...]
    missing: str
    at_input: bool
    channels: Callable[[Any, int], tuple[int, ...]]
    correct: Callable[[Any, ChannelStatistics, ChannelStatistics], Correction]
    fold: Callable[[Any, Tensor, Tensor], dict[str, Tensor]]


def repair_rule(module: nn.Module) -> RepairRule | None:
    """Return how a module is repaired, or None where no rule applies."""
    return next((rule for types, rule in _RULES.items() if isinstance(module, types)), None)


def _match_statistics(
    dense: ChannelStatistics, pruned: ChannelStatistics, limit: Tensor | None = None
) -> Correction:
    factor = std_ratio(dense, pruned, limit)
    return factor, dense.mean - factor * pruned.mean


def _match_input(
    norm: _NormBase, dense: ChannelStatistics, pruned: ChannelStatistics
) -> Correction:
    assert norm.running_var is not None
    # A larger factor would need a running variance below 0.
    limit = ((norm.running_var + norm.eps) / norm.eps).sqrt()
    return _match_statistics(dense, pruned, limit)


def _fold_statistics(norm: _NormBase, factor: Tensor, shift: Tensor) -> dict[str, Tensor]:
    """With r = σp/σd: variance ← r²·(variance + ε) − ε, mean ← μp − (μd − mean)·r.

    The denominator √(variance + ε) is then exactly r times its old value.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    # BatchNorm computes (x − mean) ÷ √(var + ε): the correction of its input is folded into both.
    ratio, mean, var = 1 / factor.view(-1), norm.running_mean.double(), norm.running_var.double()
    return {
        "running_mean": (mean - shift.view(-1)) * ratio,
        "running_var": (ratio**2 * var + (ratio**2 - 1) * norm.eps).clamp_min(0),
    }


def _match_mean_ratio(
    _layer: nn.Module, dense: ChannelStatistics, pruned: ChannelStatistics
) -> Correction:
    """Shift the mean to μd · σp/σd, which keeps the position of 0 relative to the distribution.

    A bias cannot restore the spread. With the dense mean itself (bias correction, Nagel et al.
    2019, section 4.2) a distribution that pruning has narrowed moves to one side of a ReLU's
    threshold, which costs more than it gains.
    """
    return torch.ones_like(pruned.mean), dense.mean / std_ratio(dense, pruned) - pruned.mean


def _fold_bias(leaf: str, layer: nn.Module, _factor: Tensor, shift: Tensor) -> dict[str, Tensor]:
    bias = layer.get_parameter(leaf)
    return {leaf: bias + shift.view_as(bias)}


def _match_output(
    _norm: nn.Module, dense: ChannelStatistics, pruned: ChannelStatistics
) -> Correction:
    return _match_statistics(dense, pruned)


def _fold_affine(norm: nn.Module, factor: Tensor, shift: Tensor) -> dict[str, Tensor]:
    weight, bias = norm.get_parameter("weight"), norm.get_parameter("bias")
    # factor · (weight · x + bias) + shift, as one affine map.
    factor, shift = factor.view_as(bias), shift.view_as(bias)
    return {"weight": factor * weight, "bias": factor * bias + shift}


def _axis_1(_module: nn.Module, _rank: int) -> tuple[int, ...]:
    return (1,)


def _last_axis(_module: nn.Module, rank: int) -> tuple[int, ...]:
    return (rank - 1,)


def _axis_before_space(module: _ConvNd, rank: int) -> tuple[int, ...]:
    return (rank - len(module.kernel_size) - 1,)


def _normalized_axes(module: nn.LayerNorm, rank: int) -> tuple[int, ...]:
    return tuple(range(rank - len(module.normalized_shape), rank))


_NO_STATISTICS = "keeps no running statistics; it normalises by the statistics of its input"
_NO_AFFINE = "has no weight and bias into which a scale and a shift could be written"
_NO_BIAS = "has no bias into which a shift could be written, and no norm follows it"


def _bias_rule(channels: Callable[[Any, int], tuple[int, ...]], leaf: str = "bias") -> RepairRule:
    fold = partial(_fold_bias, leaf)
    return RepairRule(BIAS, (leaf,), _NO_BIAS, False, channels, _match_mean_ratio, fold)


def _norm_rule(channels: Callable[[Any, int], tuple[int, ...]]) -> RepairRule:
    leaves = ("weight", "bias")
    return RepairRule(NORM, leaves, _NO_AFFINE, False, channels, _match_output, _fold_affine)


_RULES: dict[type[nn.Module], RepairRule | None] = {
    _NormBase: RepairRule(
        STATISTICS,
        ("running_mean", "running_var"),
        _NO_STATISTICS,
        at_input=True,
        channels=_axis_1,
        correct=_match_input,
        fold=_fold_statistics,
    ),
    # The output projection of an attention layer is never called itself: the attention's own
    # forward reads its weights, so the rule belongs to the attention module.
    NonDynamicallyQuantizableLinear: None,
    nn.MultiheadAttention: _bias_rule(_last_axis, "out_proj.bias"),
    nn.Linear: _bias_rule(_last_axis),
    _ConvNd: _bias_rule(_axis_before_space),
    nn.LayerNorm: _norm_rule(_normalized_axes),
    nn.GroupNorm: _norm_rule(_axis_1),
}
