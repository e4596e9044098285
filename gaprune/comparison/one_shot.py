"""Methods that make a mask in one step: criteria, percentile, whole channels, and a codebook."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from gaprune.baselines.clustering import cluster_weights
from gaprune.baselines.structured import structured_masks
from gaprune.baselines.threshold import percentile_mask
from gaprune.budget import keep_total, uniform_counts
from gaprune.comparison.contest import Contest, Entrant, Run
from gaprune.saliency import SALIENCIES, Saliency, score_with
from gaprune.supermask import global_mask, layered_mask


def by_criterion(saliency: Saliency) -> Run:
    """Return the method that ranks all layers together by one saliency."""

    def run(contest: Contest, sparsities: Sequence[float], seed: int) -> Iterator[Entrant]:
        layout = contest.target.layout
        for sparsity in sparsities:
            scores = _scores(contest, saliency, sparsity, seed)
            mask = global_mask(scores, layout, keep_total(layout, sparsity))
            yield contest.masked(sparsity, mask)

    return run


def layerwise(saliency: Saliency) -> Run:
    """Return the method that ranks inside every layer, all at the same density."""

    def run(contest: Contest, sparsities: Sequence[float], seed: int) -> Iterator[Entrant]:
        layout = contest.target.layout
        for sparsity in sparsities:
            counts = uniform_counts(layout, sparsity)
            mask = layered_mask(_scores(contest, saliency, sparsity, seed), layout, counts)
            yield contest.masked(sparsity, mask)

    return run


def by_percentile(contest: Contest, sparsities: Sequence[float], seed: int) -> Iterator[Entrant]:
    """Keep what lies above a percentile of all |w|."""
    for sparsity in sparsities:
        yield contest.masked(sparsity, percentile_mask(contest.target, sparsity))


def whole_channels(norm: float) -> Run:
    """Return the method that drops output channels and neurons by their norm."""

    def run(contest: Contest, sparsities: Sequence[float], seed: int) -> Iterator[Entrant]:
        for sparsity in sparsities:
            yield contest.masked(sparsity, structured_masks(contest.target, sparsity, norm))

    return run


def clustered(contest: Contest, sparsities: Sequence[float], seed: int) -> Iterator[Entrant]:
    """Global magnitude, then one codebook a layer for what is kept (Han et al. 2015)."""
    target = contest.target
    for sparsity in sparsities:
        scores = _scores(contest, SALIENCIES["magnitude"], sparsity, seed)
        mask = global_mask(scores, target.layout, keep_total(target.layout, sparsity))
        masks = target.layout.split(mask)
        books = cluster_weights(target, masks, contest.clusters)
        yield Entrant(sparsity, books.model(target), int(mask.count_nonzero()))


def _scores(contest: Contest, saliency: Saliency, sparsity: float, seed: int) -> Tensor:
    probes = contest.saliency_probes(seed) if saliency.needs_probes else None
    generator = contest.generator("comparison", saliency.name, seed)
    return score_with(saliency, contest.network(), probes, generator, density=1 - sparsity)
