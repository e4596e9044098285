"""Methods that make a mask in one step: criteria, percentile, whole channels, and a codebook."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from gaprune.comparison.context import ComparisonContext, MethodFunction, MethodResult
from gaprune.comparison.methods.structured import structured_masks
from gaprune.comparison.methods.threshold import percentile_mask
from gaprune.comparison.ranking import norms_of_channels
from gaprune.criteria import CRITERIA, Criterion, score_with
from gaprune.export.clustering import cluster_weights
from gaprune.masks.units import ChannelUnits


def by_criterion(criterion: Criterion) -> MethodFunction:
    """Return the method that ranks all layers together by one criterion."""

    def run(
        context: ComparisonContext, sparsities: Sequence[float], seed: int
    ) -> Iterator[MethodResult]:
        for sparsity in sparsities:
            scores = _scores(context, criterion, sparsity, seed)
            yield context.masked(sparsity, context.ground.best(scores, sparsity))

    return run


def layerwise(criterion: Criterion) -> MethodFunction:
    """Return the method that ranks inside every layer, all at the same density."""

    def run(
        context: ComparisonContext, sparsities: Sequence[float], seed: int
    ) -> Iterator[MethodResult]:
        for sparsity in sparsities:
            scores = _scores(context, criterion, sparsity, seed)
            yield context.masked(sparsity, context.ground.best_in_layers(scores, sparsity))

    return run


def by_percentile(
    context: ComparisonContext, sparsities: Sequence[float], seed: int
) -> Iterator[MethodResult]:
    """Keep what lies above a percentile of all |w|."""
    for sparsity in sparsities:
        yield context.masked(sparsity, percentile_mask(context.target, sparsity))


def whole_channels(norm: float) -> MethodFunction:
    """Return the method that drops output channels and neurons by their norm.

    Under the pattern `channel` what reads a channel goes with it, and channels are counted.
    """

    def run(
        context: ComparisonContext, sparsities: Sequence[float], seed: int
    ) -> Iterator[MethodResult]:
        target, ground = context.target, context.ground
        for sparsity in sparsities:
            if isinstance(ground.units, ChannelUnits):
                weights = target.layout.flatten(target.weights)
                norms = norms_of_channels(ground.units, weights, norm)
                yield context.masked(sparsity, ground.units_in_layers(norms, sparsity))
            else:
                yield context.masked(sparsity, structured_masks(target, sparsity, norm))

    return run


def clustered(
    context: ComparisonContext, sparsities: Sequence[float], seed: int
) -> Iterator[MethodResult]:
    """Global magnitude, then one codebook a layer for what is kept (Han et al. 2015)."""
    target = context.target
    for sparsity in sparsities:
        scores = _scores(context, CRITERIA["magnitude"], sparsity, seed)
        mask = context.ground.best(scores, sparsity)
        masks = target.layout.split(mask)
        books = cluster_weights(target, masks, context.clusters)
        yield MethodResult(sparsity, books.model(target), int(mask.count_nonzero()))


def _scores(context: ComparisonContext, criterion: Criterion, sparsity: float, seed: int) -> Tensor:
    calibration = context.criterion_inputs(seed) if criterion.needs_inputs else None
    generator = context.generator("comparison", criterion.name, seed)
    return score_with(criterion, context.network(), calibration, generator, density=1 - sparsity)
