"""Iterative pruning with fine-tuning: prune a little, train what is left, prune again.

Han et al. 2015, section 3 (magnitude), Zhu and Gupta 2017 (many small steps), Frankle et al. 2019
and Renda et al. 2020 (kept weights rewound before training). The lessons decide what it costs:
labelled images, or generated calibration inputs with the dense network's answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from gaprune.comparison.methods.schedule import PruningStep, check_steps
from gaprune.comparison.methods.training import TrainingData, TrainingOptions, train
from gaprune.criteria import CRITERIA, DenseNetwork, score
from gaprune.errors import unknown_name
from gaprune.masks.budget import apportion, keep_total, uniform_counts
from gaprune.masks.supermask import Layout, global_mask, layer_counts, layered_mask
from gaprune.models.target import Target, private_copy, trainable_copy

SCORED = 1024  # lessons that a criterion looks at, where it looks at inputs


@dataclass(frozen=True)
class IterativePruningOptions:
    """How to prune and train in turns.

    Attributes:
        training: how to train in each step, with an optimiser of its own.
        criterion: a key of `CRITERIA`, computed on the current weights.
        scope: a key of `RANKINGS`.
        rewind: whether all parameters and buffers go back to the original's before each training,
            so that only the mask remembers the steps before.

    Raises:
        InputError: an unknown name.
    """

    training: TrainingOptions = field(default_factory=TrainingOptions)
    criterion: str = "magnitude"
    scope: str = "global"
    rewind: bool = False

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise unknown_name("criterion", self.criterion, CRITERIA)
        if self.scope not in RANKINGS:
            raise unknown_name("scope", self.scope, RANKINGS)


@dataclass(frozen=True, eq=False)
class PruningStage:
    """The network after one step.

    Attributes:
        sparsity: what the step asked for.
        masks: parameter name → bool of its shape, True where the weight is kept; each stage keeps
            a part of what the one before kept.
        model: a copy of its own, frozen, in evaluation mode; dropped weights are 0.
        epochs: trained so far, all steps together.
        steps: taken so far, this one included.
    """

    sparsity: float
    masks: dict[str, Tensor]
    model: nn.Module = field(repr=False)
    epochs: float
    steps: int


def prune_iteratively(
    target: Target,
    data: TrainingData,
    steps: Sequence[PruningStep],
    how: IterativePruningOptions,
    generator: torch.Generator,
    on_epoch: Callable[[float], None] = lambda _epochs: None,
) -> Iterator[PruningStage]:
    """Return the network after each step; a stage is computed when it is asked for.

    At each step the current weights are scored, the best of those that are left stay (exactly as
    many as the sparsity says, at least one a layer), and all that is left is trained.

    Args:
        target: the dense network; it stays as it is.
        data: what is trained on, and shown to a criterion that looks at inputs.
        steps: sparsities that grow, with their epochs (see `schedule`).
        how: criterion, scope, rewinding and training.
        generator: the only source of randomness.
        on_epoch: is told the epochs done so far, all steps together.

    Raises:
        InputError: steps that do not grow, or a sparsity that empties a layer; before any work.
        GapruneError: (from the iterator) training or scoring gives numbers that are not finite.
    """
    steps = check_steps(steps)
    everything = torch.ones(target.layout.total, dtype=torch.bool, device=target.device)
    RANKINGS[how.scope](everything.float(), everything, target.layout, steps[-1].sparsity)
    return _stages(target, data, steps, how, generator, on_epoch)


def _stages(
    target: Target,
    data: TrainingData,
    steps: Sequence[PruningStep],
    how: IterativePruningOptions,
    generator: torch.Generator,
    on_epoch: Callable[[float], None],
) -> Iterator[PruningStage]:
    model = trainable_copy(target.model)
    left = torch.ones(target.layout.total, dtype=torch.bool, device=target.device)
    epochs = 0.0
    for count, step in enumerate(steps, start=1):
        current = private_copy(model, target.device)
        scores = _score(target, current, data, how.criterion, 1 - step.sparsity, generator)
        scores = scores.masked_fill(~left, -torch.inf)  # what is gone stays gone
        left = RANKINGS[how.scope](scores, left, target.layout, step.sparsity)
        masks = target.layout.split(left)
        if how.rewind:
            model = trainable_copy(target.model)
        told = partial(_forward, on_epoch, epochs)
        train(model, data, how.training, step.epochs, generator, masks=masks, on_epoch=told)
        epochs += step.epochs
        yield PruningStage(step.sparsity, masks, private_copy(model, target.device), epochs, count)


def _forward(on_epoch: Callable[[float], None], before: float, epochs: float) -> None:
    on_epoch(before + epochs)


def _score(
    target: Target,
    model: nn.Module,
    data: TrainingData,
    criterion: str,
    density: float,
    generator: torch.Generator,
) -> Tensor:
    weights = {name: model.get_parameter(name).detach() for name in target.layout.names}
    calibration = None
    if CRITERIA[criterion].needs_inputs:
        index = torch.randperm(len(data.inputs), generator=generator)[:SCORED]
        calibration = data.inputs[index.to(data.inputs.device)].to(target.device)
        calibration = (
            calibration.to(target.dtype) if calibration.is_floating_point() else calibration
        )
    network = DenseNetwork(model, weights, target.layout, target.inputs)
    return score(criterion, network, calibration, generator, density)


def _over_all(scores: Tensor, left: Tensor, layout: Layout, sparsity: float) -> Tensor:
    return global_mask(scores, layout, keep_total(layout, sparsity))


def _by_layer(scores: Tensor, left: Tensor, layout: Layout, sparsity: float) -> Tensor:
    # rounding may give a layer one weight more than the step before left it
    counts = uniform_counts(layout, sparsity)
    counts = apportion(counts, sum(counts), layer_counts(left, layout))
    return layered_mask(scores, layout, counts)


RANKINGS: dict[str, Callable[[Tensor, Tensor, Layout, float], Tensor]] = {
    "global": _over_all,
    "layer": _by_layer,
}
"""Scope → `(scores, what is left, layout, sparsity)` → what stays, flat bool `[total]`."""
