"""Fit a mixture of generators to the statistics that the BatchNorms of a network store.

The moments of a mixture are the mixture of the moments, so the best shares need one forward pass
per generator only. The remaining divergence tells how far procedural inputs are from the training
data: about 0.01 nats per channel for strokes and a network trained on digits, several times as
much for any mixture and a network trained on photographs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gaprune.calibration.generators.mixture import MIN_SHARE
from gaprune.calibration.generators.random_draws import InputGenerator
from gaprune.calibration.inversion.adam import AdamSteps
from gaprune.calibration.inversion.batchnorm_statistics import (
    BatchNormRecorder,
    TrainingStatistics,
)
from gaprune.calibration.weighing import inputs_of_each, is_quick
from gaprune.models.network import DenseNetwork

SAMPLE = 256  # inputs per generator
CHUNK = 64  # inputs per forward pass
STEPS, LEARNING_RATE = 400, 0.1  # of Adam on the logits of the shares
QUICK_STEPS = 100  # for an estimate: they end within 0.5 % of the divergence after all of them
# Nats of divergence per nat of entropy: generators that fit almost equally well get similar
# shares, so that calibration inputs stay diverse.
ENTROPY_BONUS = 0.003


class MixtureFit(NamedTuple):
    """The mixture that comes nearest to the stored statistics.

    Attributes:
        shares: generator → share, largest first; they add up to 1, negligible ones are left out.
    """

    shares: dict[str, float]
    divergence: float  # of the mixture from the stored statistics, in nats per channel
    single_divergence: dict[str, float]  # of each generator alone


@torch.no_grad()
def measure_moments(
    network: DenseNetwork,
    generators: Mapping[str, InputGenerator],
    generator: torch.Generator,
    count: int | None = None,
    batch: int = CHUNK,
) -> Tensor:
    """Return the moments of the inputs of all BatchNorms for every generator.

    `generator` draws `count` inputs from each of the generators, in order; None means `SAMPLE`.
    They pass through the network in batches. The moments are means and mean squares, float64
    `[generators, 2, channels]` on the CPU.

    Raises:
        InputError: no BatchNorm with running statistics takes part in the forward pass.
    """
    count = count or SAMPLE
    zero = torch.zeros((), dtype=torch.float64, device=network.device)
    rows = dict.fromkeys(generators, zero)
    with BatchNormRecorder(network.model) as recorder:
        for name, chunk in inputs_of_each(network, generators, generator, count, batch):
            network.model(chunk)
            rows[name] = rows[name] + recorder.take()[0].double() * (len(chunk) / count)
    return torch.stack(list(rows.values())).cpu()


class MixtureFitter:
    """Fits the shares of generators to the statistics that a network stores.

    `moments` are those of the named generators, `[generators, 2, channels]`; all is float64.
    """

    def __init__(
        self, names: Sequence[str], moments: Tensor, statistics: TrainingStatistics
    ) -> None:
        self._moments = dict(zip(names, moments, strict=True))
        self._statistics = statistics
        self._fits: dict[tuple[tuple[str, ...], int], MixtureFit] = {}

    def fit(self, names: Iterable[str] | None = None) -> MixtureFit:
        """Return the best mixture of some generators; None means all."""
        chosen = tuple(self._moments if names is None else names)
        steps = QUICK_STEPS if is_quick() else STEPS
        if (chosen, steps) not in self._fits:
            self._fits[chosen, steps] = self._fit(chosen, steps)
        return self._fits[chosen, steps]

    @torch.enable_grad()  # the caller may have switched gradients off
    def _fit(self, names: tuple[str, ...], steps: int) -> MixtureFit:
        table = torch.stack([self._moments[name] for name in names])
        divergence = self._statistics.divergence
        logits = torch.zeros(len(names), dtype=torch.float64, device=table.device)
        logits.requires_grad_()
        adam = AdamSteps([logits])
        for _ in range(steps):
            # The softmax keeps the shares positive and their sum at 1.
            shares = logits.softmax(0)
            entropy = -torch.xlogy(shares, shares).sum()
            loss = divergence(_mix(shares, table)) - ENTROPY_BONUS * entropy
            adam.step(torch.autograd.grad(loss, logits), LEARNING_RATE)
        shares = logits.detach().softmax(0)
        shares = torch.where(shares < MIN_SHARE, 0.0, shares)
        shares /= shares.sum()
        ranked = sorted(zip(names, shares.tolist(), strict=True), key=lambda item: -item[1])
        return MixtureFit(
            {name: share for name, share in ranked if share},
            float(divergence(_mix(shares, table))),
            {name: float(divergence(row)) for name, row in zip(names, table, strict=True)},
        )


def _mix(shares: Tensor, table: Tensor) -> Tensor:
    """Return the moments `[2, channels]` of a mixture of rows `[generators, 2, channels]`."""
    return (shares.view(-1, 1, 1) * table).sum(0)
