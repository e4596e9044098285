"""Methods of channel pruning, all to the same number of MACs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gaprune.comparison import ComparisonSpec, find_methods
from gaprune.comparison.context import ComparisonContext, ComparisonObserver
from gaprune.comparison.methods.slimming import (
    ChannelRanking,
    Slimmer,
    SlimmingOptions,
    rank_channels,
)
from gaprune.comparison.methods.training import TrainingOptions, from_labels
from gaprune.config import EVOLVED, Settings, make_settings
from gaprune.errors import GapruneError
from gaprune.evaluation.labelled import zoo_train
from gaprune.masks.budget import keep_total
from gaprune.models.channel_removal import remove_channels
from gaprune.models.macs import macs_per_input
from gaprune.models.patterns import searched_layout, silent_channels
from gaprune.models.target import Target, trainable_copy
from gaprune.runs.prune import prune_target


@dataclass(frozen=True)
class Case:
    """Settings for one network.

    Attributes:
        sparsity: fraction of the MACs removed.
        width_multiple: layer widths are multiples of it.
        search: settings of the search.
        criterion: the one-shot criterion of `gaprune` in benchmarks/peers.py.
        rounds: rounds of slimming.
        epochs: epochs of fine-tuning per round.
    """

    sparsity: float
    width_multiple: int = 1
    search: Mapping[str, Any] = field(default_factory=dict)
    criterion: str = "conditional"
    rounds: int = 3
    epochs: float = 0.5


@dataclass(frozen=True)
class ChannelPruned:
    """The result of a method: compact network, data level of its inputs, its training."""

    model: nn.Module
    level: str
    training: str = "none"


Method = Callable[[Target, Case, int], ChannelPruned]


def searched(
    target: Target,
    case: Case,
    seed: int,
    *,
    method: str = EVOLVED,
    repair: bool = False,
    compensate: bool = False,
) -> ChannelPruned:
    """Prune by `gaprune prune`."""
    options = {"method": method, "repair_in_loop": repair, "compensate": compensate}
    result = prune_target(target, _settings(case, seed, **options))
    models = (result.compensated_model(), result.repaired_model(), result.pruned_model())
    model = next(model for model in models if model is not None)
    return ChannelPruned(_compact(target, model, result.masks), result.provenance.level)


def _settings(case: Case, seed: int, **options: Any) -> Settings:
    return make_settings(
        {
            "sparsity": case.sparsity,
            "pattern": "channel",
            "budget": "macs",
            "width_multiple": case.width_multiple,
            "seed": seed,
            **case.search,
            **options,
        }
    )


def compared(name: str, target: Target, case: Case, seed: int) -> ChannelPruned:
    """Prune by a method of `gaprune compare`."""
    settings = _settings(case, seed)
    spec = ComparisonSpec((case.sparsity,), settings=settings)
    context = ComparisonContext(target, spec, None, ComparisonObserver())
    (method,) = find_methods((name,), settings.pattern)
    (result,) = method.run(context, (case.sparsity,), seed)
    masks = {name: result.model.get_parameter(name) != 0 for name in target.layout.names}
    return ChannelPruned(_compact(target, result.model, masks), method.needs_in(context).data)


def _slimming(target: Target, case: Case, seed: int) -> ChannelPruned:
    """Remove channels of small γ and fine-tune, in rounds (Liu et al. 2017)."""
    train = zoo_train(target)
    if train is None:
        raise GapruneError("slimming: needs labelled images, and this network has none")
    generator = torch.Generator().manual_seed(seed)
    layout = searched_layout(
        target, make_settings({"sparsity": case.sparsity, "pattern": "channel", "budget": "macs"})
    )
    goal, dense = keep_total(layout, case.sparsity), layout.dense_cost
    options = SlimmingOptions(
        rounds=case.rounds, epochs=case.epochs, training=TrainingOptions(decay="cosine")
    )
    slimmer = Slimmer(target, from_labels(train), options, generator, None)

    def count(ranking: ChannelRanking, model: nn.Module, number: int) -> int:
        budget = dense * (1 - case.sparsity) ** (number / options.rounds)
        limit = goal if number == options.rounds else max(goal, budget)
        low, high = 0, len(ranking.order)
        while low < high:
            middle = (low + high) // 2
            removed = ranking.removed(middle)
            compact = remove_channels(model, target.example(), removed)
            macs = macs_per_input(compact, target.example())
            low, high = (low, middle) if macs <= limit else (middle + 1, high)
        return low

    rank_channels(target.model, target.example())  # raises an error where there is no BatchNorm
    last = list(slimmer.rounds(trainable_copy(target.model), count))[-1]
    epochs = f"{last.epochs:g} epochs on {len(train.inputs):,} labelled images"
    return ChannelPruned(last.model, "labelled", epochs)


METHODS: dict[str, Method] = {
    "evolved": searched,
    "evolved+repair": partial(searched, repair=True),
    "evolved+compensation": partial(searched, compensate=True),
    "conditional+compensation": partial(searched, method="conditional", compensate=True),
    "magnitude-structured": partial(compared, "structured-l1"),
    "slimming": _slimming,
}


def _compact(target: Target, model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Return the network without its silent channels.

    Raises:
        GapruneError: its outputs differ from those of the masked network.
    """
    compact = remove_channels(model, target.example(), silent_channels(target, masks))
    inputs = torch.rand(7, *target.inputs.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = float((compact.eval()(inputs) - model.eval()(inputs)).abs().max())
    if not difference <= 1e-5 * max(1.0, float(model(inputs).abs().max())):
        raise GapruneError(f"compact: differs from the masked network by {difference:.1e}")
    return compact.requires_grad_(False)
