"""Methods that make a mask in one step: criteria, percentile, whole channels, and a codebook."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from gaprune.comparison.context import ComparisonContext, Entrant, Run
from gaprune.comparison.methods.structured import structured_masks
from gaprune.comparison.methods.threshold import percentile_mask
from gaprune.comparison.ranking import norms_of_channels
from gaprune.criteria import CRITERIA, Criterion, score_with
from gaprune.export.clustering import cluster_weights
from gaprune.masks.channels import Channels


def by_criterion(criterion: Criterion) -> Run:
    """Return the method that ranks all layers together by one criterion."""

    def run(
        contest: ComparisonContext, sparsities: Sequence[float], seed: int
    ) -> Iterator[Entrant]:
        for sparsity in sparsities:
            scores = _scores(contest, criterion, sparsity, seed)
            yield contest.masked(sparsity, contest.ground.best(scores, sparsity))

    return run


def layerwise(criterion: Criterion) -> Run:
    """Return the method that ranks inside every layer, all at the same density."""

    def run(
        contest: ComparisonContext, sparsities: Sequence[float], seed: int
    ) -> Iterator[Entrant]:
        for sparsity in sparsities:
            scores = _scores(contest, criterion, sparsity, seed)
            yield contest.masked(sparsity, contest.ground.best_in_layers(scores, sparsity))

    return run


def by_percentile(
    contest: ComparisonContext, sparsities: Sequence[float], seed: int
) -> Iterator[Entrant]:
    """Keep what lies above a percentile of all |w|."""
    for sparsity in sparsities:
        yield contest.masked(sparsity, percentile_mask(contest.target, sparsity))


def whole_channels(norm: float) -> Run:
    """Return the method that drops output channels and neurons by their norm.

    Under the pattern `channel` what reads a channel goes with it, and channels are counted.
    """

    def run(
        contest: ComparisonContext, sparsities: Sequence[float], seed: int
    ) -> Iterator[Entrant]:
        target, ground = contest.target, contest.ground
        for sparsity in sparsities:
            if isinstance(ground.units, Channels):
                weights = target.layout.flatten(target.weights)
                norms = norms_of_channels(ground.units, weights, norm)
                yield contest.masked(sparsity, ground.units_in_layers(norms, sparsity))
            else:
                yield contest.masked(sparsity, structured_masks(target, sparsity, norm))

    return run


def clustered(
    contest: ComparisonContext, sparsities: Sequence[float], seed: int
) -> Iterator[Entrant]:
    """Global magnitude, then one codebook a layer for what is kept (Han et al. 2015)."""
    target = contest.target
    for sparsity in sparsities:
        scores = _scores(contest, CRITERIA["magnitude"], sparsity, seed)
        mask = contest.ground.best(scores, sparsity)
        masks = target.layout.split(mask)
        books = cluster_weights(target, masks, contest.clusters)
        yield Entrant(sparsity, books.model(target), int(mask.count_nonzero()))


def _scores(contest: ComparisonContext, criterion: Criterion, sparsity: float, seed: int) -> Tensor:
    calibration = contest.criterion_inputs(seed) if criterion.needs_inputs else None
    generator = contest.generator("comparison", criterion.name, seed)
    return score_with(criterion, contest.network(), calibration, generator, density=1 - sparsity)
