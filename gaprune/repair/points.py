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
    BIAS: "bias of linear, convolution and attention layers: their outputs get the dense mean",
    NORM: "weight and bias of layer and group norms: their outputs get the dense moments",
}
"""What repair may write → what that is and does."""


@dataclass(frozen=True)
class Kind:
    """One kind of module that can be repaired.

    Attributes:
        part: a key of `PARTS`.
        leaves: the parameters and buffers below the module that repair writes.
        missing: what to say of a module that lacks them.
        at_input: whether the module's first input is matched to the dense network's, or its output.
        channels: (module, rank of the matched tensor) → its channel axes.
        factor: (module, dense moments, pruned moments) → what the deviations are multiplied by.
        fold: (module, dense moments, pruned moments, factor) → values of the leaves under which the
            module itself applies `correction`, float64.
    """

    part: str
    leaves: tuple[str, ...]
    missing: str
    at_input: bool
    channels: Callable[[Any, int], tuple[int, ...]]
    factor: Callable[[Any, Moments, Moments], Tensor]
    fold: Callable[[Any, Moments, Moments, Tensor], dict[str, Tensor]]

    def correction(
        self, module: nn.Module, dense: Moments, pruned: Moments
    ) -> tuple[Tensor, Tensor]:
        """Return factor and shift that carry the pruned moments to the dense ones."""
        factor = self.factor(module, dense, pruned)
        return factor, dense.mean - factor * pruned.mean


def kind_of(module: nn.Module) -> Kind | None:
    """Return how a module is repaired, or None where it is of no kind that can be."""
    return next((kind for types, kind in _KINDS.items() if isinstance(module, types)), None)


def _up_to_bare_variance(norm: _NormBase, dense: Moments, pruned: Moments) -> Tensor:
    """Return the gain, at most √((variance + ε)/ε): with that the running variance is 0."""
    assert norm.running_var is not None
    return gain(dense, pruned, ((norm.running_var + norm.eps) / norm.eps).sqrt())


def _fold_statistics(
    norm: _NormBase, dense: Moments, pruned: Moments, factor: Tensor
) -> dict[str, Tensor]:
    """Anchored repair: with r = σp/σd, variance ← r²·(variance + ε) − ε, mean ← μp − (μd − mean)·r.

    The normaliser √(variance + ε) is then r times what it was, exactly.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, var = norm.running_mean.double(), norm.running_var.double()
    ratio, wanted, found = (x.double().view_as(mean) for x in (1 / factor, dense.mean, pruned.mean))
    return {
        "running_mean": ratio * mean + (found - ratio * wanted),
        "running_var": (ratio**2 * var + (ratio**2 - 1) * norm.eps).clamp_min(0),
    }


def _one(_module: nn.Module, _dense: Moments, pruned: Moments) -> Tensor:
    return torch.ones_like(pruned.mean)


def _fold_shift(
    leaf: str, layer: nn.Module, dense: Moments, pruned: Moments, _factor: Tensor
) -> dict[str, Tensor]:
    """Bias correction: b ← b + μd − μp (Nagel et al. 2019, section 4.2)."""
    bias = layer.get_parameter(leaf)
    return {leaf: bias + (dense.mean.double() - pruned.mean.double()).view_as(bias)}


def _whole_gain(_module: nn.Module, dense: Moments, pruned: Moments) -> Tensor:
    return gain(dense, pruned)


def _fold_affine(
    norm: nn.Module, dense: Moments, pruned: Moments, factor: Tensor
) -> dict[str, Tensor]:
    """With f = σd/σp of its output: weight ← f·weight, bias ← f·(bias − μp) + μd."""
    weight, bias = norm.get_parameter("weight"), norm.get_parameter("bias")
    times, wanted, found = (x.double().view_as(bias) for x in (factor, dense.mean, pruned.mean))
    return {"weight": times * weight, "bias": times * bias + (wanted - times * found)}


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
    return Kind(BIAS, (leaf,), _NO_BIAS, False, channels, _one, partial(_fold_shift, leaf))


def _norm(channels: Callable[[Any, int], tuple[int, ...]]) -> Kind:
    leaves = ("weight", "bias")
    return Kind(NORM, leaves, _NO_AFFINE, False, channels, _whole_gain, _fold_affine)


_KINDS: dict[type[nn.Module], Kind | None] = {
    _NormBase: Kind(
        STATISTICS,
        ("running_mean", "running_var"),
        _NO_STATISTICS,
        at_input=True,
        channels=_second,
        factor=_up_to_bare_variance,
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
