"""What a network with BatchNorm remembers of its training data, and how far a batch is from it.

Every BatchNorm holds the mean and variance of what entered it in training. DeepInversion (Yin et
al. 2020, section 3.2) and ZeroQ (Cai et al. 2020, section 3.1) make inputs that reproduce them.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from gaprune.errors import InputError

_TYPES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Remembered(NamedTuple):
    """Running statistics of all BatchNorms that a forward pass met, channels joined.

    Attributes:
        mean, variance: float `[channels]`; the norm's epsilon is part of the variance.
        epsilon: of each channel's norm, `[channels]`.
        share: weight of each channel, `[channels]`: every norm counts alike; they add up to 1.
    """

    mean: Tensor
    variance: Tensor
    epsilon: Tensor
    share: Tensor

    def mismatch(self, moments: Tensor) -> Tensor:
        """Return KL(batch ‖ remembered) between Gaussians in nats, mean over norms and channels.

        Args:
            moments: means and mean squares of a batch `[2, channels]`, differentiable.
        """
        mean, square = moments
        # rounding can leave a constant channel just below 0
        variance = (square - mean.square()).clamp_min(0) + self.epsilon
        ratio = variance / self.variance
        off_centre = (mean - self.mean).square() / self.variance
        divergence: Tensor = 0.5 * (self.share * (ratio + off_centre - 1 - ratio.log())).sum()
        return divergence


class Watch:
    """Sees what enters the BatchNorms of a network while the context is open; leaves no trace.

    Args:
        model: the network, in evaluation mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self._norms = batchnorms(model)
        self._seen: list[tuple[nn.Module, Tensor]] = []
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        self._hooks = [norm.register_forward_pre_hook(self._see) for norm in self._norms]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._seen.clear()

    def _see(self, norm: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._seen.append((norm, _moments(arguments[0])))

    def take(self) -> tuple[Tensor, Remembered]:
        """Return the moments `[2, channels]` of the last forward pass and what they should be.

        Raises:
            InputError: the pass met no BatchNorm.
        """
        seen, self._seen = self._seen, []
        if not seen:
            raise InputError(
                "calibration inputs: no BatchNorm with running statistics takes part in the forward pass of "
                "this network; use --calibration impressions"
            )
        return torch.cat([moments for _, moments in seen], 1), _remembered([n for n, _ in seen])


class Pool:
    """Moments of a batch that goes through the network in parts.

    Those of the present part are fresh, those of the others the last known: a step old at most.

    Args:
        sizes: inputs in each part.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._shares = [size / sum(sizes) for size in sizes]
        self._known: dict[int, Tensor] = {}

    def join(self, part: int, moments: Tensor) -> Tensor:
        """Return the moments `[2, channels]` of the batch, differentiable in those of one part."""
        self._known[part] = moments.detach()
        joined = self._shares[part] * moments
        for other, known in self._known.items():
            if other != part:
                joined = joined + self._shares[other] * known
        return joined


def batchnorms(model: nn.Module) -> list[nn.Module]:
    """Return the BatchNorms of a network that hold running statistics."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _TYPES) and module.running_mean is not None
    ]


def has_batchnorm(model: nn.Module) -> bool:
    """Say whether a network holds statistics of its training data."""
    return bool(batchnorms(model))


def forgetful(model: nn.Module) -> list[str]:
    """Return the names of the BatchNorms that hold no running statistics."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, _TYPES) and module.running_mean is None
    ]


def has_seen_data(model: nn.Module) -> bool:
    """Say whether any running statistic differs from that of a new network, mean 0, variance 1."""
    norms = batchnorms(model)
    return not all(
        torch.all(norm.get_buffer("running_mean") == 0)
        and torch.all(norm.get_buffer("running_var") == 1)
        for norm in norms
    )


def _moments(inputs: Tensor) -> Tensor:
    """Return mean and mean square per channel `[2, C]` of `[N, C, …]`, over all other axes."""
    exact = torch.promote_types(inputs.dtype, torch.float32)
    places = inputs.to(exact).reshape(*inputs.shape[:2], -1)
    # a dot product costs a quarter of what var_mean does
    squares = torch.linalg.vecdot(places, places) / places.shape[2]
    return torch.stack([places.mean(2), squares]).mean(1)


def _remembered(norms: list[nn.Module]) -> Remembered:
    parts: list[Tensor] = []
    for norm in norms:
        assert isinstance(norm, _TYPES)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        one = torch.ones_like(norm.running_var)
        epsilon = norm.eps * one
        share = one / (len(one) * len(norms))
        parts.append(torch.stack([norm.running_mean, norm.running_var + epsilon, epsilon, share]))
    return Remembered(*torch.cat(parts, 1))
