"""Which modules can be repaired without touching a weight, and what is written into each."""

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

from gaprune.repair.moments import Moments, gain

STATISTICS, BIAS, NORM = "statistics", "bias", "norm"
PARTS = {
    STATISTICS: "running mean and variance of BatchNorms: their inputs get the dense moments",
    BIAS: "bias of linear, convolution and attention layers: the dense ratio of mean to spread",
    NORM: "weight and bias of layer and group norms: their outputs get the dense moments",
}
"""What repair may write → what that is and does."""

Correction = tuple[Tensor, Tensor]
"""Factor and shift per channel: x → factor · x + shift, broadcast against the matched tensor."""


@dataclass(frozen=True)
class Kind:
    """One kind of module that can be repaired.

    Attributes:
        part: a key of `PARTS`.
        leaves: the parameters and buffers below the module that repair writes.
        missing: what to say of a module that lacks them.
        at_input: whether the module's first input is matched to the dense network's, or its output.
        channels: (module, rank of the matched tensor) → its channel axes.
        correct: (module, dense moments, pruned moments) → the correction of the matched tensor.
        fold: (module, factor, shift), float64 → values of the leaves under which the module applies
            that correction itself.
    """

    part: str
    leaves: tuple[str, ...]
    missing: str
    at_input: bool
    channels: Callable[[Any, int], tuple[int, ...]]
    correct: Callable[[Any, Moments, Moments], Correction]
    fold: Callable[[Any, Tensor, Tensor], dict[str, Tensor]]


def kind_of(module: nn.Module) -> Kind | None:
    """Return how a module is repaired, or None where it is of no kind that can be."""
    return next((kind for types, kind in _KINDS.items() if isinstance(module, types)), None)


def _matched(dense: Moments, pruned: Moments, most: Tensor | None = None) -> Correction:
    factor = gain(dense, pruned, most)
    return factor, dense.mean - factor * pruned.mean


def _match_input(norm: _NormBase, dense: Moments, pruned: Moments) -> Correction:
    """Give the dense moments; the factor ends where the running variance would fall below 0."""
    assert norm.running_var is not None
    return _matched(dense, pruned, ((norm.running_var + norm.eps) / norm.eps).sqrt())


def _fold_statistics(norm: _NormBase, factor: Tensor, shift: Tensor) -> dict[str, Tensor]:
    """Anchored repair: with r = σp/σd, variance ← r²·(variance + ε) − ε, mean ← μp − (μd − mean)·r.

    The normaliser √(variance + ε) is then r times what it was, exactly.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    ratio, mean, var = 1 / factor.view(-1), norm.running_mean.double(), norm.running_var.double()
    return {
        "running_mean": (mean - shift.view(-1)) * ratio,
        "running_var": (ratio**2 * var + (ratio**2 - 1) * norm.eps).clamp_min(0),
    }


def _keep_ratio(_layer: nn.Module, dense: Moments, pruned: Moments) -> Correction:
    """Shift the mean to μd · σp/σd: zero lies where it lay in the dense distribution.

    A bias cannot give the spread back. With the dense mean itself (the bias correction of Nagel et
    al. 2019, section 4.2) a distribution that pruning has narrowed comes to lie on one side of a
    ReLU's threshold, which costs more than it brings.
    """
    return torch.ones_like(pruned.mean), dense.mean / gain(dense, pruned) - pruned.mean


def _fold_bias(leaf: str, layer: nn.Module, _factor: Tensor, shift: Tensor) -> dict[str, Tensor]:
    bias = layer.get_parameter(leaf)
    return {leaf: bias + shift.view_as(bias)}


def _match_output(_norm: nn.Module, dense: Moments, pruned: Moments) -> Correction:
    return _matched(dense, pruned)


def _fold_affine(norm: nn.Module, factor: Tensor, shift: Tensor) -> dict[str, Tensor]:
    weight, bias = norm.get_parameter("weight"), norm.get_parameter("bias")
    factor, shift = factor.view_as(bias), shift.view_as(bias)
    return {"weight": factor * weight, "bias": factor * bias + shift}


def _second(_module: nn.Module, _rank: int) -> tuple[int, ...]:
    return (1,)


def _last(_module: nn.Module, rank: int) -> tuple[int, ...]:
    return (rank - 1,)


def _before_space(module: _ConvNd, rank: int) -> tuple[int, ...]:
    return (rank - len(module.kernel_size) - 1,)


def _normalised(module: nn.LayerNorm, rank: int) -> tuple[int, ...]:
    return tuple(range(rank - len(module.normalized_shape), rank))


_NO_STATISTICS = "keeps no running statistics: it goes by what comes in"
_NO_AFFINE = "has no weight and bias to write a scale and a shift into"
_NO_BIAS = "has no bias to write a shift into, and no norm takes its output"


def _bias(channels: Callable[[Any, int], tuple[int, ...]], leaf: str = "bias") -> Kind:
    return Kind(BIAS, (leaf,), _NO_BIAS, False, channels, _keep_ratio, partial(_fold_bias, leaf))


def _norm(channels: Callable[[Any, int], tuple[int, ...]]) -> Kind:
    leaves = ("weight", "bias")
    return Kind(NORM, leaves, _NO_AFFINE, False, channels, _match_output, _fold_affine)


_KINDS: dict[type[nn.Module], Kind | None] = {
    _NormBase: Kind(
        STATISTICS,
        ("running_mean", "running_var"),
        _NO_STATISTICS,
        at_input=True,
        channels=_second,
        correct=_match_input,
        fold=_fold_statistics,
    ),
    # what attention projects its output with is never called; the attention is
    NonDynamicallyQuantizableLinear: None,
    nn.MultiheadAttention: _bias(_last, "out_proj.bias"),
    nn.Linear: _bias(_last),
    _ConvNd: _bias(_before_space),
    nn.LayerNorm: _norm(_normalised),
    nn.GroupNorm: _norm(_second),
}
