"""The statistics of the training data that BatchNorms store, and the distance of a batch from them.

Every BatchNorm holds the running mean and variance of its inputs in training. DeepInversion (Yin et
al. 2020, section 3.2) and ZeroQ (Cai et al. 2020, section 3.1) make inputs that reproduce them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from gaprune.errors import InputError

_TYPES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class TrainingStatistics(NamedTuple):
    """Running statistics of all BatchNorms in a forward pass, with their channels concatenated.

    Attributes:
        mean, variance: float `[channels]`; the variance includes the norm's epsilon.
    """

    mean: Tensor
    variance: Tensor
    epsilon: Tensor  # of each channel's norm, `[channels]`
    weight: Tensor  # of each channel, `[channels]`; every norm counts alike, and the sum is 1

    def double(self) -> TrainingStatistics:
        """Return the statistics in float64."""
        return TrainingStatistics(*(values.double() for values in self))

    def divergence(self, moments: Tensor) -> Tensor:
        """Return KL(batch ‖ training) between Gaussians in nats per channel.

        KL = ½ (σ²/σ₀² + (μ − μ₀)²/σ₀² − 1 − ln σ²/σ₀²), averaged over norms and channels; `moments`
        are the means and mean squares of a batch `[2, channels]`. Differentiable.
        """
        mean, square = moments
        # Rounding can make the variance of a constant channel slightly negative.
        variance = (square - mean.square()).clamp_min(0) + self.epsilon
        ratio = variance / self.variance
        offset = (mean - self.mean).square() / self.variance
        divergence: Tensor = 0.5 * (self.weight * (ratio + offset - 1 - ratio.log())).sum()
        return divergence


class BatchNormRecorder:
    """Records the moments of the inputs of all BatchNorms while the context is open."""

    def __init__(self, model: nn.Module) -> None:
        self._norms = batchnorms(model)
        self._records: list[tuple[nn.Module, Tensor]] = []
        self._hooks = ExitStack()
        self._passed: list[nn.Module] = []  # the norms whose `_statistics` are known
        self._statistics: TrainingStatistics | None = None

    def __enter__(self) -> Self:
        for norm in self._norms:
            self._hooks.enter_context(norm.register_forward_pre_hook(self._record))
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.close()
        self._records.clear()

    def _record(self, norm: nn.Module, arguments: tuple[Any, ...]) -> None:
        moments = _Moments.apply(arguments[0])  # type: ignore[no-untyped-call]  # torch's own
        self._records.append((norm, moments))

    def take(self) -> tuple[Tensor, TrainingStatistics]:
        """Return the moments `[2, channels]` of the last forward pass and the stored statistics.

        Both list the norms in the order of the forward pass; a norm that runs twice counts twice.
        An `InputError` says if no BatchNorm took part.
        """
        records, self._records = self._records, []
        if not records:
            raise InputError(
                "calibration inputs: no BatchNorm with running statistics takes part in the "
                "forward pass of this network; use --calibration=impressions"
            )
        moments = torch.cat([moments for _, moments in records], 1)
        passed = [norm for norm, _ in records]
        if self._statistics is None or passed != self._passed:  # mostly the same in every pass
            self._passed, self._statistics = passed, _training_statistics(passed)
        return moments, self._statistics


class ChunkedMoments:
    """Moments of a batch that passes through the network in chunks.

    The moments of the current chunk are differentiable. Those of the others are constants from
    their last pass, at most one step old: the whole batch would not fit into memory.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._shares = [size / sum(sizes) for size in sizes]
        self._known: dict[int, Tensor] = {}

    def update(self, chunk: int, moments: Tensor) -> Tensor:
        """Return the moments `[2, channels]` of the batch after a pass of one chunk."""
        self._known[chunk] = moments.detach()
        total = self._shares[chunk] * moments
        for other, known in self._known.items():
            if other != chunk:
                total = total + self._shares[other] * known
        return total


def batchnorms(model: nn.Module) -> list[nn.Module]:
    """Return the BatchNorms of a network that hold running statistics."""
    norms = (module for module in model.modules() if isinstance(module, _TYPES))
    return [norm for norm in norms if norm.running_mean is not None]


def has_seen_data(model: nn.Module) -> bool:
    """Return whether any running statistic differs from the initial mean 0 and variance 1."""
    return not all(
        torch.all(norm.get_buffer("running_mean") == 0)
        and torch.all(norm.get_buffer("running_var") == 1)
        for norm in batchnorms(model)
    )


class _Moments(torch.autograd.Function):
    """Mean and mean square per channel `[2, C]` of `[N, C, …]`, over all other axes.

    The gradient is written in one pass over the values; that of separate sums takes three.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:  # noqa: ANN401 - torch has no type for it
        ctx.save_for_backward(inputs)
        wide = torch.promote_types(inputs.dtype, torch.float32)
        values = inputs.to(wide).reshape(*inputs.shape[:2], -1)
        # vecdot takes a quarter of the time of var_mean.
        squares = torch.linalg.vecdot(values, values) / values.shape[2]
        return torch.stack([values.mean(2), squares]).mean(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401 - as above
        (inputs,) = ctx.saved_tensors
        count = inputs.numel() // inputs.shape[1]
        shape = (2, -1, *[1] * (inputs.ndim - 2))
        mean, square = (gradient / count).view(shape)
        return torch.addcmul(mean, inputs, 2 * square).to(inputs.dtype)


def _training_statistics(norms: Sequence[Any]) -> TrainingStatistics:
    columns: list[Tensor] = []
    for norm in norms:
        ones = torch.ones_like(norm.running_var)
        epsilon = norm.eps * ones
        weight = ones / (len(ones) * len(norms))
        columns.append(
            torch.stack([norm.running_mean, norm.running_var + epsilon, epsilon, weight])
        )
    return TrainingStatistics(*torch.cat(columns, 1))
