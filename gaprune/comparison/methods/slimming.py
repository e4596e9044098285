"""Network slimming: remove the channels with the smallest BatchNorm scales (Liu et al. 2017).

The ranking equals `torch_pruning.importance.BNScaleImportance(normalizer=None)`: mean |γ| of the
BatchNorms that scale a channel. It is computed here because that class takes torch-pruning's own
groups, which do not know which channels must stay (`ChannelGraph`) and may empty a layer.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gaprune.calibration.samples import Samples
from gaprune.comparison.methods.training import TrainingData, TrainingOptions, train
from gaprune.errors import InputError
from gaprune.evaluation.held_out import HeldOut
from gaprune.masks.budget import check_sparsity, keep_total
from gaprune.models.channel_groups import ChannelGraph, CoupledChannels
from gaprune.models.channel_removal import masked_equivalent, remove_channels
from gaprune.models.channel_slicing import num_inputs, num_outputs
from gaprune.models.forward import batched_forward
from gaprune.models.macs import macs_per_input
from gaprune.models.target import Target, trainable_copy

COMPARED = 256  # training inputs on which compact and masked network are compared
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class SlimmingOptions:
    """How a network is slimmed.

    Raises:
        InputError: a number outside its range.
    """

    rounds: int = 5  # of removing channels and fine-tuning
    width: float = 0.95  # fraction of the channels that a round keeps, unless a sparsity is given
    epochs: float = 1.0  # of fine-tuning per round; may be a fraction
    penalty: float = 1e-4  # λ of the L1 penalty on γ (Liu et al. 2017, eq. 1); 0 for none
    sparse_epochs: float = 0.0  # of training with the penalty before the first round
    # a rate that falls to 0 in every round keeps more of the accuracy than a constant one
    training: TrainingOptions = field(default_factory=lambda: TrainingOptions(decay="cosine"))

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise InputError(f"rounds: must be at least 1, got {self.rounds}")
        if not 0 < self.width < 1:
            raise InputError(
                f"width: must be above 0 and below 1 (the fraction to keep), got {self.width}"
            )
        for name in ("epochs", "penalty", "sparse_epochs"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name}: must be 0 or more and finite, got {getattr(self, name)}")


class ChannelRanking(NamedTuple):
    """The channels of a network, ranked by the scales of their BatchNorms."""

    order: tuple[CoupledChannels, ...]  # smallest |γ| first; removing all empties no layer
    total: int  # number of ranked channels

    def removed(self, count: int) -> dict[str, list[int]]:
        """Return layer → ascending output channels of the first `count`, by their first layer."""
        layers = defaultdict(list)
        for channel in self.order[:count]:
            layers[channel.outputs[0].layer].append(channel.outputs[0].channel)
        return {layer: sorted(channels) for layer, channels in layers.items()}


@dataclass(frozen=True)
class NetworkSize:
    """Counts of a network."""

    parameters: int
    prunable: int  # weights that the target counts as prunable
    macs: int  # multiply-adds for one input
    channels: int  # that can be removed and have a BatchNorm


@dataclass(frozen=True, eq=False)
class SlimmingRound:
    """One round of slimming.

    Attributes:
        removed: layer → output channels, as the network before the round counts them.
        model: the smaller network after it, frozen: its best epoch on the held-out data.
        error: largest absolute difference between the outputs of `compact` and those of the large
            network with the same channels masked, on up to `COMPARED` training inputs.
    """

    number: int  # from 1
    after: NetworkSize
    removed: dict[str, list[int]] = field(repr=False)
    compact: nn.Module = field(repr=False)  # the smaller network before fine-tuning, frozen
    model: nn.Module = field(repr=False)
    error: float
    epochs: float  # of training so far, including `sparse_epochs`


def slim(  # noqa: PLR0913 # what slimming depends on, each by its own name
    target: Target,
    data: TrainingData,
    options: SlimmingOptions,
    generator: torch.Generator,
    *,
    sparsity: float | None = None,
    held_out: Samples | None = None,
    on_epoch: Callable[[float], None] = lambda _epochs: None,
) -> Iterator[SlimmingRound]:
    """Remove channels and fine-tune, in rounds.

    Channels of all layers are ranked together by |γ| (Liu et al. 2017, section 3). If several
    BatchNorms scale the same channel (depthwise blocks, residual sums), it is the mean of their
    |γ|. No layer loses its last channel; channels without BatchNorm stay.

    Args:
        target: the dense network; stays unchanged.
        data: what the smaller networks are trained on.
        options: how it is slimmed.
        generator: decides the order of the data, and what dropout drops.
        sparsity: fraction of the prunable weights to remove. Every round then removes about the
            same fraction of the remaining weights, the last one as few channels as reach the goal.
            None: every round keeps `options.width` of the channels.
        held_out: split off the training data, never the test data. Each round keeps
            the epoch that scores best on it, by accuracy, or without labels by agreement with the
            dense network. Without it a round keeps its last epoch.
        on_epoch: receives the epochs done so far, after each.

    Raises:
        InputError: no BatchNorm whose channels can be removed, a sparsity that removing channels
            cannot reach, or what `ChannelGraph.trace` and `train` object to.
        GapruneError: training overflows.
    """
    test = None if held_out is None else HeldOut(target, held_out)
    slimmer = Slimmer(target, data, options, generator, test, on_epoch)
    goal = 0 if sparsity is None else keep_total(target.layout, check_sparsity(sparsity))

    def count(ranking: ChannelRanking, model: nn.Module, number: int) -> int:
        if sparsity is None:
            # at least one channel per round
            return max(1, round(ranking.total * (1 - options.width)))
        # geometric: equal fractions per round
        left = round(target.layout.total * (1 - sparsity) ** (number / options.rounds))
        return slimmer.fewest(ranking, model, goal if number == options.rounds else max(goal, left))

    rank_channels(target.model, target.example())  # raises before any training
    model, epochs = trainable_copy(target.model), options.sparse_epochs
    penalty = gamma_penalty(options.penalty)
    train(model, data, options.training, epochs, generator, penalty=penalty, on_epoch=on_epoch)
    yield from slimmer.rounds(model.requires_grad_(False), count)


@dataclass(frozen=True, eq=False)
class Slimmer:
    """Runs the rounds of slimming; the fields are the arguments of `slim`."""

    target: Target
    data: TrainingData
    options: SlimmingOptions
    generator: torch.Generator
    held_out: HeldOut | None
    on_epoch: Callable[[float], None] = lambda _epochs: None

    def rounds(
        self, model: nn.Module, count: Callable[[ChannelRanking, nn.Module, int], int]
    ) -> Iterator[SlimmingRound]:
        """Yield the rounds from `model` on, which was trained for `options.sparse_epochs`.

        `count` maps (ranking, network, number of the round) to how many channels to remove.
        """
        example, done = self.target.example(), self.options.sparse_epochs
        for number in range(1, self.options.rounds + 1):
            ranking = rank_channels(model, example)
            # channel numbers of this round
            removed = ranking.removed(count(ranking, model, number))
            compact = remove_channels(model, example, removed)
            tuned = self._tune(compact, done)
            done += self.options.epochs
            yield SlimmingRound(
                number=number,
                after=self._size(tuned),
                removed=removed,
                compact=compact,
                model=tuned,
                error=self._error(compact, masked_equivalent(model, example, removed)),
                epochs=done,
            )
            model = tuned

    def fewest(self, ranking: ChannelRanking, model: nn.Module, goal: int) -> int:
        """Return the smallest number of channels to remove so that `goal` weights are left."""

        def left(count: int) -> int:
            removed = ranking.removed(count)
            return self._prunable(remove_channels(model, self.target.example(), removed))

        low, high = 0, len(ranking.order)  # channel counts
        if left(high) > goal:
            raise InputError(
                f"sparsity: removing channels leaves at least {left(high)} of "
                f"{self.target.layout.total} weights, and {goal} are asked; use a lower sparsity"
            )
        while low < high:  # bisection: more removed channels never leave more weights
            middle = (low + high) // 2
            low, high = (low, middle) if left(middle) <= goal else (middle + 1, high)
        return low

    def _tune(self, compact: nn.Module, done: float) -> nn.Module:
        """Fine-tune a copy; return its best epoch on the held-out data, or its last."""
        model = trainable_copy(compact)
        # the network before training is no candidate: it may have memorised the held-out data
        best_score: float | None = None
        best_state = copy.deepcopy(model.state_dict())

        def after_epoch(epochs: float) -> None:
            nonlocal best_score, best_state
            score = self._score(model)
            if score is None or best_score is None or score >= best_score:  # ties: the later epoch
                best_score, best_state = score, copy.deepcopy(model.state_dict())
            model.train()  # scoring has set evaluation mode
            self.on_epoch(done + epochs)

        train(
            model,
            self.data,
            self.options.training,
            self.options.epochs,
            self.generator,
            penalty=gamma_penalty(self.options.penalty),
            on_epoch=after_epoch,
        )
        model.load_state_dict(best_state)
        return model.requires_grad_(False)

    def _score(self, model: nn.Module) -> float | None:
        if self.held_out is None:
            return None
        score = self.held_out.measure(model.eval())
        return score.agreement if score.accuracy is None else score.accuracy

    def _error(self, compact: nn.Module, masked: nn.Module) -> float:
        inputs = self.data.inputs[:COMPARED]
        dtype = self.target.dtype if inputs.is_floating_point() else inputs.dtype
        inputs = inputs.to(self.target.device, dtype)
        return float(
            (batched_forward(compact, inputs) - batched_forward(masked, inputs)).abs().max()
        )

    def _prunable(self, model: nn.Module) -> int:
        return sum(model.get_parameter(name).numel() for name in self.target.layout.names)

    def _size(self, model: nn.Module) -> NetworkSize:
        return NetworkSize(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            prunable=self._prunable(model),
            macs=macs_per_input(model, self.target.example()),
            channels=rank_channels(model, self.target.example()).total,
        )


def rank_channels(model: nn.Module, example: Tensor) -> ChannelRanking:
    """Rank the channels of all layers together by mean |γ|; ties are in the order of the layers.

    Raises:
        InputError: no BatchNorm whose channels can be removed, or a network that cannot be traced.
    """
    groups = ChannelGraph.trace(model, example).groups
    channels = [channel for group in groups for channel in group.channels]
    scales = zip(channel_scales(model, channels), channels, strict=True)
    ranked = [(scale, channel) for scale, channel in scales if scale is not None]
    if not ranked:
        raise InputError(
            "model: network slimming ranks channels by the scales of BatchNorm layers, and this "
            "network has none whose channels can be removed; use a network with BatchNorm"
        )
    ranked.sort(key=lambda pair: pair[0])  # stable: ties in order of the layers
    return ChannelRanking(tuple(_never_empty(model, [c for _, c in ranked])), len(ranked))


def channel_scales(model: nn.Module, channels: Sequence[CoupledChannels]) -> list[float | None]:
    """Return the mean |γ| of the BatchNorms behind each channel; None if it has none."""
    by_layer, scales = _gammas(model), []
    for channel in channels:
        gammas = [by_layer[layer][index] for layer, index in channel.outputs if layer in by_layer]
        scales.append(float(torch.stack(gammas).detach().abs().mean()) if gammas else None)
    return scales


def gamma_penalty(strength: float) -> Callable[[nn.Module], Tensor] | None:
    """Return λ · Σ|γ| of all BatchNorms (Liu et al. 2017, eq. 1) as a function; None for λ = 0."""
    if not strength:
        return None

    def penalty(network: nn.Module) -> Tensor:
        return strength * torch.stack([g.abs().sum() for g in _gammas(network).values()]).sum()

    return penalty


def _gammas(model: nn.Module) -> dict[str, Tensor]:
    """Return layer name → scale of every BatchNorm that has one."""
    return {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, NORMS) and module.affine
    }


def _never_empty(
    model: nn.Module, channels: Sequence[CoupledChannels]
) -> Iterator[CoupledChannels]:
    """Yield channels in their order, without those that would empty a layer."""
    left = {}
    for channel in channels:
        for name in {part.layer for part in channel.outputs}:
            left[name, "made"] = num_outputs(model.get_submodule(name))
        for name in {part.layer for part in channel.inputs}:
            left[name, "read"] = num_inputs(model.get_submodule(name))
    for channel in channels:
        needed = Counter((part.layer, "made") for part in channel.outputs)
        needed.update((part.layer, "read") for part in channel.inputs)
        # one channel must stay everywhere
        if all(count < left[side] for side, count in needed.items()):
            yield channel
            for side, count in needed.items():
                left[side] -= count
