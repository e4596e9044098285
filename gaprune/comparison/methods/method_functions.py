"""The methods as functions: from a context, sparsities and a seed to pruned networks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor

from gaprune.callbacks import SubrunObserver
from gaprune.comparison.context import ComparisonContext, MethodResult, part_name
from gaprune.comparison.methods.edge_popup import EdgePopupOptions, edge_popup
from gaprune.comparison.methods.folding import folded
from gaprune.comparison.methods.iterative import (
    REWIND,
    SCHEDULES,
    PruningStep,
    prune_iteratively,
)
from gaprune.comparison.methods.neuron_merging import merged
from gaprune.comparison.methods.slimming import SlimmingOptions, channel_scales, slim
from gaprune.comparison.methods.threshold import percentile_mask
from gaprune.comparison.methods.torch_rules import structured_masks
from gaprune.comparison.methods.training import TrainingData, from_labels, from_teacher
from gaprune.config import EVOLVED
from gaprune.criteria import CRITERIA, Criterion, DenseNetwork, score_with
from gaprune.errors import InputError
from gaprune.evolution.seeding import with_rules
from gaprune.exports.clustering import cluster_weights
from gaprune.masks.budget import keep_total, uniform_counts
from gaprune.masks.supermask import Layout, global_mask, layered_mask
from gaprune.masks.units import ChannelUnits
from gaprune.models.channel_groups import ChannelGroup
from gaprune.models.mac_cost import MacCounts
from gaprune.models.macs import suitable_batch
from gaprune.models.patterns import channel_groups
from gaprune.pattern_names import WEIGHTS
from gaprune.repair import repair, repaired_copy
from gaprune.runs.prune import prune_target

GENERATED_COUNT = 32768  # generated inputs that replace a training set
MAX_VALUES = 2**28  # of all generated inputs together: 1 GiB of float32


def by_criterion(
    criterion: Criterion,
    context: ComparisonContext,
    sparsities: Sequence[float],
    seed: int,
    *,
    in_layers: bool = False,
) -> Iterator[MethodResult]:
    """Rank all layers together by a criterion, or each layer on its own at the same density."""
    units = context.ranked_units
    to_mask = units.best_in_layers if in_layers else units.best
    scope = "layer" if in_layers else "global"
    for sparsity in sparsities:
        scores = _scores(context, criterion, sparsity, seed, scope)
        yield context.masked(sparsity, to_mask(scores, sparsity))


def _scores(
    context: ComparisonContext,
    criterion: Criterion,
    sparsity: float,
    seed: int,
    scope: str = "global",
) -> Tensor:
    most = criterion.most_inputs if criterion.needs_inputs else 0
    calibration = context.criterion_inputs(seed, most) if most else None
    generator = context.generator("comparison", criterion.name, seed)
    network: DenseNetwork = context.target
    ranked = context.ranked_units
    if ranked.units is None:
        network = with_rules(network, ranked.layout, sparsity, scope)
    return score_with(criterion, network, calibration, generator, density=1 - sparsity)


def by_percentile(
    context: ComparisonContext, sparsities: Sequence[float], seed: int
) -> Iterator[MethodResult]:
    """Keep the weights above a percentile of all |w|."""
    for sparsity in sparsities:
        yield context.masked(sparsity, percentile_mask(context.target, sparsity))


def whole_channels(
    norm: float, context: ComparisonContext, sparsities: Sequence[float], _seed: int
) -> Iterator[MethodResult]:
    """Remove output channels and neurons by the norm of their weights.

    Under the pattern `channel` the weights that read a channel are removed as well, and the
    sparsity counts channels.
    """
    for sparsity in sparsities:
        yield context.masked(sparsity, _channel_masks(norm, context, sparsity))


def _channel_masks(norm: float, context: ComparisonContext, sparsity: float) -> dict[str, Tensor]:
    target, ranked = context.target, context.ranked_units
    if not isinstance(ranked.units, ChannelUnits):
        return structured_masks(target, sparsity, norm)
    norms = channel_norms(ranked.units, target.flat, norm)
    return target.layout.split(ranked.best_units_in_layers(norms, sparsity))


def repaired_channels(
    context: ComparisonContext, sparsities: Sequence[float], seed: int
) -> Iterator[MethodResult]:
    """Remove channels by L1 norm, then repair the network (`gaprune.repair`)."""
    target = context.target
    for sparsity in sparsities:
        masks = _channel_masks(1, context, sparsity)
        correction = repair(target, masks, context.evaluator(seed).statistics_inputs)
        yield context.masked(sparsity, masks, repaired_copy(target, masks, correction))


def merged_channels(
    context: ComparisonContext, sparsities: Sequence[float], _seed: int
) -> Iterator[MethodResult]:
    """Remove channels by L1 norm, and merge them into the most similar kept ones."""
    target, (units, layout, groups) = context.target, _ranked_channels(context)
    for sparsity in sparsities:
        norms = channel_norms(units, target.flat, 1)
        alive = layered_mask(norms, layout, uniform_counts(layout, sparsity)).cpu()
        masks = target.layout.split(units.weight_mask(alive))
        yield context.masked(sparsity, masks, merged(target, groups, alive))


def folded_channels(
    context: ComparisonContext, sparsities: Sequence[float], seed: int
) -> Iterator[MethodResult]:
    """Cluster the channels of every layer, and keep one for each cluster."""
    target, (units, layout, groups) = context.target, _ranked_channels(context)
    for sparsity in sparsities:
        model, alive = folded(target, groups, uniform_counts(layout, sparsity), seed)
        masks = target.layout.split(units.weight_mask(alive))
        yield context.masked(sparsity, masks, model)


def by_batchnorm_scale(
    context: ComparisonContext, sparsities: Sequence[float], _seed: int
) -> Iterator[MethodResult]:
    """Keep the channels of the largest BatchNorm scales, and those without BatchNorm.

    Raises:
        InputError: the channels with BatchNorm are too few to remove.
    """
    units, layout, groups = _ranked_channels(context)
    scales = channel_scales(context.target.model, [c for group in groups for c in group.channels])
    scored = torch.tensor([torch.inf if scale is None else scale for scale in scales])
    for sparsity in sparsities:
        mask = global_mask(scored, layout, keep_total(layout, sparsity))
        if not mask[scored.isinf()].all():
            raise InputError(
                f"sparsity: {sparsity} needs channels without BatchNorm, and this method removes "
                "none of them; use a lower sparsity"
            )
        yield context.masked(sparsity, units.weight_mask(mask))


def _ranked_channels(
    context: ComparisonContext,
) -> tuple[ChannelUnits, Layout, Sequence[ChannelGroup]]:
    """Return the channels of the pattern `channel`, and those behind every layer of the layout."""
    ranked, settings = context.ranked_units, context.spec.settings
    assert isinstance(ranked.units, ChannelUnits)
    groups = channel_groups(context.target, alike=settings.budget != WEIGHTS)
    return ranked.units, ranked.layout, groups


def channel_norms(channels: ChannelUnits, weights: Tensor, norm: float) -> Tensor:
    """Return the norm of all weights `[total]` that make a channel, per unit (Li et al. 2017)."""
    # float64 on the CPU: the order of the additions must not matter
    sums = torch.zeros(channels.layout.total + 1, dtype=torch.float64)
    layers = channels.weights.split(weights.double().cpu().abs()).values()
    for layer, wiring in zip(layers, channels.indices, strict=True):
        unit, axis = wiring.units[0], wiring.axes[0]
        if unit is not None:
            rows = layer.movedim(axis, 0).flatten(1) if layer.ndim > 1 else layer.unsqueeze(1)
            sums.index_add_(0, unit.cpu(), (rows**norm).sum(1))
    return (sums[:-1] ** (1 / norm)).float().to(weights.device)


def clustered(
    context: ComparisonContext, sparsities: Sequence[float], seed: int
) -> Iterator[MethodResult]:
    """Global magnitude, then one codebook per layer for the kept weights (Han et al. 2015)."""
    for sparsity in sparsities:
        scores = _scores(context, CRITERIA["magnitude"], sparsity, seed)
        mask = context.ranked_units.best(scores, sparsity)
        masks = context.target.layout.split(mask)
        books = cluster_weights(context.target, masks, context.spec.clusters)
        yield MethodResult(sparsity, books.model(context.target), int(mask.count_nonzero()))


def evolved(
    context: ComparisonContext, sparsities: Sequence[float], seed: int
) -> Iterator[MethodResult]:
    """Run `gaprune prune` with the same settings."""
    for sparsity in sparsities:
        settings = context.settings_for(sparsity, seed)
        name = part_name(EVOLVED, seed, sparsity)
        observer = SubrunObserver(context.observer, name, context.warned)
        result = prune_target(context.target, settings, observer=observer)
        if result.stopped == "interrupted":
            raise KeyboardInterrupt  # an unfinished search gives no row
        yield context.masked(sparsity, result.masks, evaluations=result.evaluations)


def scores_by_gradient(
    context: ComparisonContext, sparsities: Sequence[float], seed: int
) -> Iterator[MethodResult]:
    """Train scores on calibration inputs by straight-through gradients (Ramanujan et al. 2020)."""
    target = context.target
    # smaller batches for networks of many MACs
    options = EdgePopupOptions(batch=suitable_batch(MacCounts.of(target).total))
    for sparsity in sparsities:
        generator = context.generator("comparison", "edge-popup", seed, repr(sparsity))
        name = f"{part_name('edge-popup', seed, sparsity)}, step"
        report = partial(context.observer.progress, name, total=options.steps)
        evaluator = context.evaluator(seed)
        masks = evaluator.masks(edge_popup(evaluator, sparsity, options, generator, report))
        yield context.masked(sparsity, masks, evaluations=options.steps)


def iterative(
    name: str,
    schedule: str | Sequence[PruningStep],
    context: ComparisonContext,
    sparsities: Sequence[float],
    seed: int,
) -> Iterator[MethodResult]:
    """Prune iteratively by magnitude and fine-tune on the training set.

    `name` is that of the method, for progress; `schedule` is a key of `SCHEDULES`, or steps that
    contain every sparsity.
    """
    data = from_labels(context.training_samples())  # raises without training data
    generator = context.generator("comparison", "finetuned", seed)
    steps = schedule
    if isinstance(steps, str):
        steps = SCHEDULES[steps](sparsities, context.spec.epochs)
    rewind = schedule == REWIND
    yield from _fine_tune(context, data, steps, generator, part_name(name, seed), rewind=rewind)


def distilled(
    context: ComparisonContext, sparsities: Sequence[float], seed: int
) -> Iterator[MethodResult]:
    """Prune iteratively and fine-tune on calibration inputs towards the dense network's outputs."""
    calibration = context.calibration(seed)
    generator = context.generator("comparison", "distilled", seed)
    if calibration.mixture is not None:
        most = max(1, MAX_VALUES // prod(context.target.inputs.shape))
        inputs = calibration.mixture.draw(min(GENERATED_COUNT, most), generator)
    elif calibration.gradient_inputs is not None:  # a calibration set has one or the other
        inputs = calibration.gradient_inputs.inputs
    data = from_teacher(context.target, inputs)
    steps = SCHEDULES["linear"](sparsities, context.spec.epochs)
    yield from _fine_tune(context, data, steps, generator, part_name("distilled", seed))


def _fine_tune(
    context: ComparisonContext,
    data: TrainingData,
    steps: Sequence[PruningStep],
    generator: torch.Generator,
    name: str,
    *,
    rewind: bool = False,
) -> Iterator[MethodResult]:
    """Yield the network of every step; the caller uses those at the requested sparsities."""
    total = sum(step.epochs for step in steps)  # of progress
    stages = prune_iteratively(
        context.target,
        data,
        steps,
        context.spec.training,
        generator,
        rewind=rewind,
        on_epoch=lambda done: context.observer.progress(f"{name}, epoch", done, total),
    )
    for stage in stages:
        count = sum(int(stage.masks[n].count_nonzero()) for n in context.target.layout.names)
        yield MethodResult(stage.sparsity, stage.model, count, epochs=stage.epochs)


def slimmed(
    context: ComparisonContext, sparsities: Sequence[float], seed: int
) -> Iterator[MethodResult]:
    """Remove channels of small γ until the sparsity is reached, and fine-tune in between."""
    data = from_labels(context.training_samples())
    # per round
    options = SlimmingOptions(epochs=context.spec.epochs, training=context.spec.training)
    for sparsity in sparsities:
        generator = context.generator("comparison", "slimming", seed)
        name = f"{part_name('slimming', seed, sparsity)}, epoch"
        total = options.rounds * options.epochs
        report = partial(context.observer.progress, name, total=total)
        rounds = slim(context.target, data, options, generator, sparsity=sparsity, on_epoch=report)
        last = deque(rounds, maxlen=1)[0]  # runs all rounds, keeps one in memory
        yield MethodResult(sparsity, last.model, last.after.prunable, epochs=last.epochs)
