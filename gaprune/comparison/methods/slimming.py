"""Network slimming: channels whose BatchNorm scales are small go, for good (Liu et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from gaprune.calibration.samples import Samples
from gaprune.comparison.methods.gammas import ChannelRanking, gamma_penalty, rank_channels
from gaprune.comparison.methods.slimming_rounds import (
    NetworkSize,
    Slimmer,
    SlimmingOptions,
    SlimmingRound,
    penalty_of,
)
from gaprune.comparison.methods.training import TrainingData, train
from gaprune.errors import InputError
from gaprune.evaluation.held_out import HeldOut
from gaprune.masks.budget import check_sparsity, keep_total
from gaprune.models.target import Target, trainable_copy

__all__ = [
    "NetworkSize",
    "SlimmingOptions",
    "SlimmingRound",
    "gamma_penalty",
    "hold_out",
    "slim",
    "slim_to",
    "train_sparse",
]


def slim(
    target: Target,
    data: TrainingData,
    how: SlimmingOptions,
    generator: torch.Generator,
    *,
    held_out: Samples | None = None,
    on_epoch: Callable[[float], None] | None = None,
) -> Iterator[SlimmingRound]:
    """Keep `how.width` of the channels in every round, those of largest γ in the whole network.

    Channels of all layers are ranked together by |γ| (Liu et al. 2017, section 3). Where several
    BatchNorms scale the same channel (depthwise blocks, residual sums), it is the mean of their
    |γ|. No layer loses its last channel; channels without BatchNorm stay.

    Args:
        target: the dense network; stays as it is.
        data: what the smaller networks are trained on.
        how: rounds, width, epochs, penalty, training.
        generator: decides the order of the lessons, and what dropout drops.
        held_out: a part of the training data that is no part of the lessons (`hold_out`), never
            the test data. Each round keeps the epoch that does best on it, by accuracy, without
            labels by agreement with the dense network. Without it a round keeps its last epoch.
        on_epoch: is told the epochs done so far, after each.

    Raises:
        InputError: no BatchNorm whose channels can be removed, or what `ChannelGraph.trace` and
            `train` object to.
        GapruneError: torch-pruning is not installed, or training overflows.
    """
    judge = None if held_out is None else HeldOut(target, held_out)
    slimmer = Slimmer(target, data, how, generator, judge, on_epoch)

    def count(ranking: ChannelRanking, model: nn.Module, number: int) -> int:
        return max(1, round(ranking.total * (1 - how.width)))

    yield from slimmer.rounds(_start(slimmer), count)


def slim_to(  # noqa: PLR0913 # what slimming depends on, each by its own name
    target: Target,
    sparsity: float,
    data: TrainingData,
    how: SlimmingOptions,
    generator: torch.Generator,
    *,
    held_out: Samples | None = None,
    on_epoch: Callable[[float], None] | None = None,
) -> Iterator[SlimmingRound]:
    """Remove channels until at most (1 − sparsity) of the prunable weights are left.

    Every round removes about the same fraction of the weights that it finds, the last one as few
    channels as reach the goal; `how.width` is not looked at. All else is as in `slim`.

    Args:
        target: the dense network; stays as it is.
        sparsity: fraction of the prunable weights to remove, strictly between 0 and 1.
        data: what the smaller networks are trained on.
        how: rounds, epochs, penalty, training.
        generator: see `slim`.
        held_out: see `slim`.
        on_epoch: see `slim`.

    Raises:
        InputError: as in `slim`, or the smallest network that can be made has too many weights.
        GapruneError: as in `slim`.
    """
    goal = keep_total(target.layout, check_sparsity(sparsity))
    judge = None if held_out is None else HeldOut(target, held_out)
    slimmer = Slimmer(target, data, how, generator, judge, on_epoch)

    def count(ranking: ChannelRanking, model: nn.Module, number: int) -> int:
        left = round(target.layout.total * (1 - sparsity) ** (number / how.rounds))
        return slimmer.fewest(ranking, model, goal if number == how.rounds else max(goal, left))

    yield from slimmer.rounds(_start(slimmer), count)


def train_sparse(
    target: Target,
    data: TrainingData,
    how: SlimmingOptions,
    generator: torch.Generator,
    on_epoch: Callable[[float], None] | None = None,
) -> nn.Module:
    """Return a copy of the whole network trained `how.sparse_epochs` under the penalty on γ.

    Args:
        target: the dense network; stays as it is.
        data: what it is trained on.
        how: epochs, penalty, training.
        generator: see `slim`.
        on_epoch: see `slim`.

    Raises:
        InputError: a penalty above 0 and no BatchNorm, or what `train` objects to.
        GapruneError: training overflows.
    """
    model = trainable_copy(target.model)
    penalty = penalty_of(model, how)
    epochs = how.sparse_epochs
    train(model, data, how.training, epochs, generator, penalty=penalty, on_epoch=on_epoch)
    return model.requires_grad_(False)


def hold_out(samples: Samples, count: int, generator: torch.Generator) -> tuple[Samples, Samples]:
    """Split samples at random into what is learned from and `count` that judge the epochs.

    Raises:
        InputError: one of the two would be empty.
    """
    if not 0 < count < len(samples.inputs):
        raise InputError(
            f"held out: must be from 1 to fewer than the {len(samples.inputs)} samples, got {count}"
        )
    order = torch.randperm(len(samples.inputs), generator=generator)
    judged, learned = (
        Samples(
            samples.inputs[index],
            None if samples.labels is None else samples.labels[index],
            samples.source,
        )
        for index in (order[:count], order[count:])
    )
    return learned, judged


def _start(slimmer: Slimmer) -> nn.Module:
    rank_channels(slimmer.target.model, slimmer.target.example())  # or it objects before training
    return train_sparse(
        slimmer.target, slimmer.data, slimmer.how, slimmer.generator, slimmer.on_epoch
    )
