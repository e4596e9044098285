"""An individual of the search: per-layer score tensors, keep counts, and the mask they express.

Genes of large networks are held in half precision, see `held`; operators work on float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
import torch
from deap import base
from numpy.typing import NDArray
from torch import Tensor

from gaprune.masks.supermask import Layout, global_mask, layer_counts, layered_mask, pack, unpack

EXACT = 1 << 24  # so many ranks and no more are all different in float32
LARGE = 1 << 22  # weights of a network above which scores are held in half precision
PIECE = 1 << 20  # scores that are worked on at once: what is in between stays in the cache
_HALF = torch.float16
_BOUNDS = {  # dtype → the least score above the cut, the largest one
    torch.float32: (torch.finfo(torch.float32).tiny, inf),
    _HALF: (2.0**-24, torch.finfo(_HALF).max),
}


@dataclass(frozen=True, eq=False)
class Genes:
    """What is inherited, and all that travels between workers.

    Attributes:
        scores: float32 `[layout.total]`, larger is kept first; float16 where they are `held` so.
        counts: keep count of each layer, or None where all layers are ranked together
            (scope `global`).
        keep: kept weights of the whole network; where the layout has a price, multiply-adds.
        fixed: the counts never change (scope `layer`).
        absolute: the size of a score counts, not its sign (the original idea).
    """

    scores: Tensor
    counts: tuple[int, ...] | None
    keep: int
    fixed: bool = False
    absolute: bool = False

    @property
    def strength(self) -> Tensor:
        """What is ranked: the scores, or their sizes."""
        return self.scores.abs() if self.absolute else self.scores

    def express(self, layout: Layout) -> Tensor:
        """Return the flat bool mask `[layout.total]` of which exactly `keep` is the budget."""
        if self.scores.dtype == _HALF:
            mask = self.scores > 0
            if self._fits(layer_counts(mask, layout), layout) and layout.satisfies_pattern(mask):
                return mask
        strength = self.wide().strength
        if layout.n_of_m is not None:
            return layout.n_of_m.mask(strength, layout.slices, layout.shapes)
        if self.counts is None:
            return global_mask(strength, layout, self.keep)
        return layered_mask(strength, layout, self.counts)

    def signed(self) -> Genes:
        """Return the same mask and budget with scores that are ranked as they stand."""
        return replace(self, scores=self.strength, absolute=False)

    def wide(self) -> Genes:
        """Return the same genes for operators: halves as float32, which changes no value."""
        return self.with_scores(self.scores.float()) if self.scores.dtype == _HALF else self

    def _fits(self, counts: Sequence[int], layout: Layout) -> bool:
        """Tell whether a mask of so many weights in each layer, all above the others, is theirs."""
        if self.counts is not None:
            return tuple(counts) == self.counts
        enough = all(n >= least for n, least in zip(counts, layout.min_counts, strict=True))
        if layout.mac_cost is not None:
            return enough and layout.mac_cost.is_maximal(counts, self.keep)
        return enough and sum(counts) == self.keep

    def with_scores(self, scores: Tensor) -> Genes:
        """Return the same budget with other scores."""
        return replace(self, scores=scores)


def mask_key(mask: Tensor) -> str:
    """Return a hash of a flat mask: equal keys are equal phenotypes, evaluated once."""
    return bits_key(pack(mask))


def bits_key(bits: NDArray[np.uint8]) -> str:
    """Return the hash of a mask that is packed."""
    return hashlib.blake2b(bits.tobytes(), digest_size=16).hexdigest()


class Fitness(base.Fitness):  # type: ignore[misc]  # deap carries no type hints
    """One number, larger is better."""

    weights = (1.0,)


class ParetoFitness(base.Fitness):  # type: ignore[misc]  # deap carries no type hints
    """Quality, then sparsity, both larger is better."""

    weights = (1.0, 1.0)


class Individual(list[Tensor]):
    """A DEAP individual: the list of its per-layer score tensors, with a fitness.

    The tensors are views of `genes.scores`, so the list and the flat vector are one.

    Attributes:
        genes: scores, counts and budget.
        fitness: the DEAP fitness; invalid until evaluated on all search calibration inputs.
        bits: the packed mask, expressed once; whoever knows it passes it on.
        key: hash of the mask.
        learning_rate: this individual's own step length for gradient-informed mutation.
        origin: the baseline it was seeded from, or the operators that made it.
        sprint: fitness on the first rung of the race.
    """

    def __init__(
        self,
        genes: Genes,
        layout: Layout,
        origin: str,
        learning_rate: float = 1.0,
        fitness: type[base.Fitness] = Fitness,
        bits: NDArray[np.uint8] | None = None,
    ) -> None:
        super().__init__(layout.split(genes.scores).values())
        self.genes = genes
        self.bits = pack(genes.express(layout)) if bits is None else bits
        self.key = bits_key(self.bits)
        self.origin = origin
        self.learning_rate = learning_rate
        self.fitness = fitness()
        self.sprint = -float("inf")

    def at_budget(self, keep: int, layout: Layout) -> Individual:
        """Return the same scores with another number of kept weights, all layers together."""
        genes = replace(self.genes, keep=keep, counts=None)
        return Individual(genes, layout, self.origin, self.learning_rate)

    @property
    def mask(self) -> Tensor:
        """Flat bool mask, eight times as large as its bits, so unpacked when it is asked for."""
        return unpack(self.bits, self.genes.scores.numel())

    @property
    def keep(self) -> int:
        """Kept weights of the whole network."""
        return self.genes.keep

    @property
    def quality(self) -> float:
        """Fitness on the search calibration inputs, the first DEAP fitness value."""
        return float(self.fitness.values[0])


def seed_genes(
    scores: Tensor, layout: Layout, keep: int, scope: str, uniform: Sequence[int] | None = None
) -> Genes:
    """Turn a criterion into genes at a budget.

    Args:
        scores: flat criterion `[layout.total]`, comparable across layers unless `uniform` is given.
        layout: the network's prunable layers.
        keep: kept weights of the whole network.
        scope: `allocated`, `global` or `layer`.
        uniform: keep counts of every layer at equal density (required by scope `layer`); without
            them the counts are those of the global ranking.
    """
    ranked = rank(scores)
    counts = uniform or layer_counts(global_mask(ranked, layout, keep), layout)
    genes = Genes(ranked, tuple(counts), keep, fixed=scope == "layer")
    if kind_of(layout) == _HALF:
        genes = held(genes, layout)
    elif not genes.fixed:
        genes = align(genes, layout)
    return replace(genes, counts=None) if scope == "global" else genes


def rank(scores: Tensor) -> Tensor:
    """Map scores to their rank in [0, 1), ties in reverse index order; of the same shape, CPU.

    Ranks give every criterion the same scale, so one step length suits them all. Equal scores get
    the lower index the higher rank, as `top_k_mask` keeps them. They are float32, or float64 where
    there are more than `EXACT`; `held` cuts these before it rounds them.
    """
    flat, total = scores.reshape(-1).cpu(), scores.numel()
    kind = torch.float32 if total <= EXACT else torch.float64
    order = flat.flip(0).argsort(stable=True).neg_().add_(total - 1)
    ranks = torch.empty(total, dtype=kind)
    for start, places in zip(range(0, total, PIECE), order.split(PIECE), strict=True):
        ranks[places] = torch.arange(start, start + len(places), dtype=kind) / total
    return ranks.view(scores.shape)


def kind_of(layout: Layout) -> torch.dtype:
    """Return in which precision the scores of a network are held."""
    return _HALF if layout.total > LARGE else torch.float32


def held(genes: Genes, layout: Layout) -> Genes:
    """Return genes as they are kept between tasks, to be called where new ones are made.

    Those of large networks are `halved`. Rounded once, at birth, a child is the same wherever it is
    scored, sent or kept. Genes ranked by size stay float32: there the sign is a gene too.
    """
    keeps = genes.absolute or genes.scores.dtype == kind_of(layout) or layout.total <= LARGE
    return genes if keeps else halved(genes, layout)


def halved(genes: Genes, layout: Layout) -> Genes:
    """Return the same mask, to the bit, of float16 scores that are cut at 0 in every layer.

    What is rounded is the distance from the cut, by at most 2⁻¹¹ of it or 2⁻²⁵, whichever is more
    (and the last place above 0). So how far a weight has to go to be exchanged is known to 0.05 %,
    or to one place in 2²⁴ of the ranking; the gradient of a batch, which moves it, is known to
    much less. Scores beyond 65,504, where ranks lie in [0, 1), end there.
    """
    return _cut_at_zero(genes, layout, _HALF)


def align(genes: Genes, layout: Layout) -> Genes:
    """Shift each layer's scores so that its cut lies at 0: kept above, dropped at most 0; float32.

    Then one threshold serves all layers: a global top-k of aligned scores gives the same mask, and
    gradient-informed mutation can trade weights between layers. Genes without counts have one
    threshold already and come back as they are.
    """
    return genes if genes.counts is None else _cut_at_zero(genes, layout, torch.float32)


def _cut_at_zero(genes: Genes, layout: Layout, kind: torch.dtype) -> Genes:
    if layout.n_of_m is not None:
        return _groups_at_zero(genes, layout, kind)
    kept, strength = genes.express(layout), genes.wide().strength
    spans = [_span(strength[part], kept[part]) for part in layout.slices]
    # where units have prices, cheap ones stay that rank below others
    common = genes.counts is None and layout.mac_cost is None
    cuts = _common(spans) if common else [_middle(*span) for span in spans]
    least, most = _BOUNDS[kind]
    found = torch.empty(layout.total, dtype=kind)
    for part, cut in zip(layout.slices, cuts, strict=True):
        pieces = (one[part].split(PIECE) for one in (strength, kept, found))
        for scores, stays, out in zip(*pieces, strict=True):
            shifted = (scores - cut).float()
            # Equal scores, or rounding, can put both sides of a cut at 0; the index would decide.
            out.copy_(torch.where(stays, shifted.clamp(least, most), shifted.clamp(-most, 0)))
    return replace(genes, scores=found, absolute=False)


def _groups_at_zero(genes: Genes, layout: Layout, kind: torch.dtype) -> Genes:
    """Shift every group of a quota so that its own cut lies at 0; nothing else decides there."""
    assert layout.n_of_m is not None
    kept, strength = genes.express(layout), genes.wide().strength
    least, most = _BOUNDS[kind]
    found = torch.empty(layout.total, dtype=kind)
    where = layout.slices, layout.shapes
    cuts = layout.n_of_m.cuts(strength, kept, *where)
    parts = (layout.n_of_m.groups(one, *where) for one in (kept, found))
    for (scores, cut), stays, out in zip(cuts, *parts, strict=True):
        shifted = (scores - cut).float()
        out.copy_(torch.where(stays, shifted.clamp(least, most), shifted.clamp(-most, 0)))
    return replace(genes, scores=found, absolute=False)


def _span(scores: Tensor, kept: Tensor) -> tuple[float, float]:
    """Return the lowest kept score and the highest dropped one, −∞ where all are kept."""
    pieces = list(zip(scores.split(PIECE), kept.split(PIECE), strict=True))
    return (
        min(float(one.masked_fill(~stays, inf).min()) for one, stays in pieces),
        max(float(one.masked_fill(stays, -inf).max()) for one, stays in pieces),
    )


def _middle(lowest: float, highest: float) -> float:
    return lowest if highest == -inf else (lowest + highest) / 2


def _common(spans: Sequence[tuple[float, float]]) -> list[float]:
    """Return the cut of one ranking, in each layer: shifted as far as a floor holds weights there.

    Args:
        spans: of every layer, its lowest kept score and its highest dropped one.
    """
    highest = max(high for _, high in spans)
    cut = _middle(min(low for low, _ in spans if low >= highest), highest)
    return [min(max(cut, high), low) for low, high in spans]
