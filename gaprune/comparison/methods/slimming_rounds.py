"""Rounds of removing channels and fine-tuning, and what each of them did."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from gaprune.comparison.methods.gammas import (
    ChannelRanking,
    by_first_layer,
    gamma_penalty,
    gammas,
    rank_channels,
)
from gaprune.comparison.methods.training import TrainingData, TrainingOptions, train
from gaprune.errors import InputError
from gaprune.evaluation.held_out import HeldOut
from gaprune.models.channel_removal import masked_equivalent, remove_channels
from gaprune.models.forward import batched_forward
from gaprune.models.macs import macs_per_input
from gaprune.models.target import Target, trainable_copy

COMPARED = 256  # lessons on which compact and masked network are compared


@dataclass(frozen=True)
class SlimmingOptions:
    """How a network is slimmed.

    Attributes:
        rounds: of removing channels and fine-tuning.
        width: fraction of the channels that a round of `slim` keeps.
        epochs: of fine-tuning per round; may be a fraction.
        penalty: λ of the L1 penalty on γ while training (Liu et al. 2017, eq. 1); 0 for none.
        sparse_epochs: of training with the penalty before the first round.
        training: optimiser, rate and batch; by default the rate falls to 0 in every round, which
            keeps more of the accuracy than a constant one.

    Raises:
        InputError: a number outside its range.
    """

    rounds: int = 5
    width: float = 0.95
    epochs: float = 1.0
    penalty: float = 1e-4
    sparse_epochs: float = 0.0
    training: TrainingOptions = field(default_factory=lambda: TrainingOptions(decay="cosine"))

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise InputError(f"rounds: must be at least 1, got {self.rounds}")
        if not 0 < self.width < 1:
            raise InputError(
                f"width: must be above 0 and below 1 (the part that stays), got {self.width}"
            )
        for name in ("epochs", "penalty", "sparse_epochs"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name}: must be 0 or more and finite, got {getattr(self, name)}")


@dataclass(frozen=True)
class NetworkSize:
    """How large a network is.

    Attributes:
        parameters: all of them.
        prunable: those that the target counts as prunable weights.
        macs: multiply-adds for one input.
        channels: that can be removed and have a BatchNorm.
    """

    parameters: int
    prunable: int
    macs: int
    channels: int


@dataclass(frozen=True, eq=False)
class SlimmingRound:
    """One round of slimming.

    Attributes:
        number: from 1.
        before, after: sizes of the network that came in and of the one that goes out.
        removed: layer → output channels, as the network that came in counts them.
        compact: the smaller network before fine-tuning, frozen.
        model: the smaller network after it, frozen: its best epoch on the held-out part.
        error: largest absolute difference between the outputs of `compact` and those of the large
            network with the same channels masked, on up to `COMPARED` of the lessons.
        score_before, score_after: of `compact` and `model` on the held-out part; None without one.
        epochs: of training so far, this round and `sparse_epochs` included.
    """

    number: int
    before: NetworkSize
    after: NetworkSize
    removed: dict[str, list[int]] = field(repr=False)
    compact: nn.Module = field(repr=False)
    model: nn.Module = field(repr=False)
    error: float
    score_before: float | None
    score_after: float | None
    epochs: float

    def row(self) -> dict[str, float | None]:
        """Return the figures as plain data; sizes are those after the round."""
        return {
            "round": self.number,
            **asdict(self.after),
            "error": self.error,
            "score_before": self.score_before,
            "score_after": self.score_after,
            "epochs": self.epochs,
        }


@dataclass(frozen=True, eq=False)
class Slimmer:
    """A target on its way to a smaller network; arguments are those of `slimming.slim`."""

    target: Target
    data: TrainingData
    how: SlimmingOptions
    generator: torch.Generator
    held_out: HeldOut | None
    on_epoch: Callable[[float], None] | None

    def rounds(
        self, model: nn.Module, count: Callable[[ChannelRanking, nn.Module, int], int]
    ) -> Iterator[SlimmingRound]:
        """Yield the rounds.

        Args:
            model: what the first one begins with, trained for `how.sparse_epochs`.
            count: (ranking, network, number of the round) → how many channels go.
        """
        example = self.target.example()
        done = self.how.sparse_epochs
        for number in range(1, self.how.rounds + 1):
            ranking = rank_channels(model, example)
            gone = by_first_layer(ranking.order[: count(ranking, model, number)])
            compact = remove_channels(model, example, gone)
            tuned = self._tuned(compact, done)
            done += self.how.epochs
            yield SlimmingRound(
                number=number,
                before=self._size(model),
                after=self._size(tuned),
                removed=gone,
                compact=compact,
                model=tuned,
                error=self._error(compact, masked_equivalent(model, example, gone)),
                score_before=self._score(compact),
                score_after=self._score(tuned),
                epochs=done,
            )
            model = tuned

    def fewest(self, ranking: ChannelRanking, model: nn.Module, goal: int) -> int:
        """Return how few channels must go until at most `goal` prunable weights are left."""

        def left(count: int) -> int:
            gone = by_first_layer(ranking.order[:count])
            return self._prunable(remove_channels(model, self.target.example(), gone))

        low, high = 0, len(ranking.order)
        if left(high) > goal:
            raise InputError(
                f"sparsity: removing channels leaves at least {left(high)} of "
                f"{self.target.layout.total} weights, and {goal} are asked; use a lower sparsity"
            )
        while low < high:  # fewer weights are left the more channels go
            middle = (low + high) // 2
            low, high = (low, middle) if left(middle) <= goal else (middle + 1, high)
        return low

    def _tuned(self, compact: nn.Module, done: float) -> nn.Module:
        model = trainable_copy(compact)
        best = _Best(None, _state(model))  # the dense network may know what is held out by heart

        def after_epoch(epochs: float) -> None:
            score = self._score(model)
            if score is None or best.score is None or score >= best.score:
                best.score, best.state = score, _state(model)
            model.train()  # scoring ended that
            if self.on_epoch is not None:
                self.on_epoch(done + epochs)

        how = self.how
        penalty = penalty_of(model, how)
        train(
            model,
            self.data,
            how.training,
            how.epochs,
            self.generator,
            penalty=penalty,
            on_epoch=after_epoch,
        )
        model.load_state_dict(best.state)
        return model.requires_grad_(False)

    def _score(self, model: nn.Module) -> float | None:
        if self.held_out is None:
            return None
        score = self.held_out.measure(model.eval())
        return score.agreement if score.accuracy is None else score.accuracy

    def _error(self, compact: nn.Module, masked: nn.Module) -> float:
        inputs = self._placed(self.data.inputs[:COMPARED])
        return float(
            (batched_forward(compact, inputs) - batched_forward(masked, inputs)).abs().max()
        )

    def _placed(self, inputs: Tensor) -> Tensor:
        target = self.target
        dtype = target.dtype if inputs.is_floating_point() else inputs.dtype
        return inputs.to(target.device, dtype)

    def _prunable(self, model: nn.Module) -> int:
        return sum(model.get_parameter(name).numel() for name in self.target.layout.names)

    def _size(self, model: nn.Module) -> NetworkSize:
        return NetworkSize(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            prunable=self._prunable(model),
            macs=macs_per_input(model, self.target.example()),
            channels=rank_channels(model, self.target.example()).total,
        )


@dataclass
class _Best:
    score: float | None
    state: dict[str, Tensor]


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def penalty_of(model: nn.Module, how: SlimmingOptions) -> Callable[[nn.Module], Tensor] | None:
    """Return the penalty on γ, or None where its strength is 0.

    Raises:
        InputError: there is no BatchNorm.
    """
    if not how.penalty:
        return None
    if not gammas(model):
        raise InputError(
            "penalty: there is no BatchNorm whose scales it could make small; set it to 0"
        )
    return gamma_penalty(how.penalty)
