"""Genes and individuals: per-layer scores, keep counts, and the mask that they decode to.

Scores of large networks are stored in float16, see `to_storage`; operators work on float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

import numpy as np
import torch
from deap import base
from numpy.typing import NDArray
from torch import Tensor

from gaprune.masks.supermask import Layout, global_mask, layer_counts, layered_mask, pack, unpack

EXACT_FLOAT32 = 1 << 24  # up to this many ranks are distinct in float32
LARGE = 1 << 22  # weights of a network above which scores are stored in float16
PIECE = 1 << 20  # scores per step of a loop: its intermediate results fit the CPU cache
_BOUNDS = {  # dtype → the least score above the threshold, the largest score
    torch.float32: (torch.finfo(torch.float32).tiny, inf),
    torch.float16: (2.0**-24, torch.finfo(torch.float16).max),
}


@dataclass(frozen=True, eq=False)
class Genes:
    """What operators change and what travels between workers."""

    scores: Tensor  # float32 `[layout.total]`, larger is kept first; float16 in storage
    # keep count of each layer; None if all layers share one ranking (scope `global`)
    counts: tuple[int, ...] | None
    keep: int  # budget of the network: kept weights, or MACs if the layout has a MAC cost
    fixed: bool = False  # whether the counts never change (scope `layer`)
    absolute: bool = False  # whether weights are ranked by |score| (preset `classic`)

    @property
    def ranking(self) -> Tensor:
        """The values that are ranked: the scores, or their absolute values."""
        return self.scores.abs() if self.absolute else self.scores

    def decode(self, layout: Layout) -> Tensor:
        """Return the flat bool mask `[layout.total]` that spends exactly the budget `keep`."""
        if self.scores.dtype == torch.float16:
            # stored scores have their threshold at 0, which spares the top-k, see `to_float16`
            mask = self.scores > 0
            if self._has_budget(layer_counts(mask, layout), layout) and layout.satisfies_pattern(
                mask
            ):
                return mask
        ranking = self.as_float32().ranking
        if layout.n_of_m is not None:
            return layout.n_of_m.mask(ranking, layout.slices, layout.shapes)
        if self.counts is None:
            return global_mask(ranking, layout, self.keep)
        return layered_mask(ranking, layout, self.counts)

    def signed(self) -> Genes:
        """Return genes of the same mask whose scores are ranked without taking absolute values."""
        return replace(self, scores=self.ranking, absolute=False)

    def as_float32(self) -> Genes:
        """Return the same genes for operators; the conversion from float16 is exact."""
        return self.with_scores(self.scores.float()) if self.scores.dtype == torch.float16 else self

    def with_scores(self, scores: Tensor) -> Genes:
        """Return other scores under the same budget."""
        return replace(self, scores=scores)

    def _has_budget(self, counts: Sequence[int], layout: Layout) -> bool:
        if self.counts is not None:
            return tuple(counts) == self.counts
        permitted = layout.permits(counts)
        if layout.mac_cost is not None:
            return permitted and layout.mac_cost.is_maximal(counts, self.keep)
        return permitted and sum(counts) == self.keep


def mask_key(bits: NDArray[np.uint8]) -> str:
    """Return a hash of a packed mask: equal keys mean equal masks."""
    return hashlib.blake2b(bits.data, digest_size=16).hexdigest()


class Fitness(base.Fitness):  # type: ignore[misc]  # deap carries no type hints
    """One objective value to maximise."""

    weights = (1.0,)


class ParetoFitness(base.Fitness):  # type: ignore[misc]  # deap carries no type hints
    """The objective value and the sparsity, both to maximise."""

    weights = (1.0, 1.0)


@dataclass(eq=False)
class Individual:
    """A candidate for DEAP: its mask, its fitness and, while it may have children, its genes.

    The genes take 16 to 32 times the memory of the packed mask. So children that do not survive
    never send theirs, and former leaders drop theirs.
    """

    bits: NDArray[np.uint8] = field(repr=False)  # packed mask
    total: int  # length of the unpacked mask
    keep: int  # the budget that the mask spends, see `Genes`
    origin: str  # the criterion that it was seeded from, or the operators that made it
    step_scale: float = 1.0  # its own factor on gradient steps, inherited and mutated
    genes: Any = field(default=None, repr=False)  # `Genes`, a remote handle to them, or None
    fitness: base.Fitness = field(default_factory=Fitness)  # on all inputs; invalid until scored
    race_fitness: float = -inf  # on the first rung of the race
    key: str = ""  # hash of the mask, computed unless it is given

    def __post_init__(self) -> None:
        self.key = self.key or mask_key(self.bits)

    @classmethod
    def from_genes(cls, genes: Genes, layout: Layout, origin: str) -> Individual:
        """Decode genes into an individual without fitness."""
        return cls(pack(genes.decode(layout)), layout.total, genes.keep, origin, genes=genes)

    @property
    def mask(self) -> Tensor:
        """The flat bool mask, unpacked at every access: it takes eight times the memory."""
        return unpack(self.bits, self.total)

    @property
    def search_fitness(self) -> float:
        """Fitness on the calibration inputs: the first value of the DEAP fitness."""
        return float(self.fitness.values[0])


def seed_genes(
    scores: Tensor, layout: Layout, keep: int, scope: str, uniform: Sequence[int] | None = None
) -> Genes:
    """Turn the scores of a criterion into genes at a budget.

    Args:
        scores: flat scores `[layout.total]`, comparable across layers unless `uniform` is given.
        layout: the network's prunable layers.
        keep: kept weights of the whole network.
        scope: `allocated`, `global` or `layer`.
        uniform: keep count of every layer at equal density (required by scope `layer`). By
            default the counts are those of one ranking over all layers.
    """
    ranked = rank(scores)
    counts = uniform or layer_counts(global_mask(ranked, layout, keep), layout)
    genes = Genes(ranked, tuple(counts), keep, fixed=scope == "layer")
    if score_dtype(layout) == torch.float16:
        genes = to_storage(genes, layout)
    elif not genes.fixed:
        genes = align(genes, layout)
    return replace(genes, counts=None) if scope == "global" else genes


def rank(scores: Tensor) -> Tensor:
    """Map scores to their ranks in [0, 1) on the CPU, in the shape of `scores`.

    Ranks give every criterion the same scale, so one step length suits all of them. Among equal
    scores the lowest index gets the highest rank, as in `top_k_mask`. Ranks are float32, or float64
    above `EXACT_FLOAT32` scores; `to_storage` shifts these before it rounds them.
    """
    flat, total = scores.reshape(-1).cpu(), scores.numel()
    dtype = torch.float32 if total <= EXACT_FLOAT32 else torch.float64
    order = flat.flip(0).argsort(stable=True).neg_().add_(total - 1)
    ranks = torch.empty(total, dtype=dtype)
    for start, indices in zip(range(0, total, PIECE), order.split(PIECE), strict=True):
        ranks[indices] = torch.arange(start, start + len(indices), dtype=dtype) / total
    return ranks.view(scores.shape)


def score_dtype(layout: Layout) -> torch.dtype:
    """Return the dtype in which the scores of a network are stored."""
    return torch.float16 if layout.total > LARGE else torch.float32


def to_storage(genes: Genes, layout: Layout) -> Genes:
    """Return genes as they are stored between tasks; every new child passes through here once.

    A child of a large network is rounded to float16 where it is made, so it is the same wherever it
    is scored or sent. Genes ranked by |score| stay float32: their sign would be lost.
    """
    keeps = genes.absolute or genes.scores.dtype == score_dtype(layout) or layout.total <= LARGE
    return genes if keeps else to_float16(genes, layout)


def to_float16(genes: Genes, layout: Layout) -> Genes:
    """Return float16 genes of the same mask, bit for bit, with the threshold of every layer at 0.

    Only the distance from the threshold is rounded: by at most 2⁻¹¹ of it or 2⁻²⁵, whichever is
    more. So the distance that a score must move to change the mask is known to 0.05 %, far better
    than the gradient that moves it. Scores beyond 65,504 are clamped; ranks lie in [0, 1).
    """
    return _threshold_at_zero(genes, layout, torch.float16)


def align(genes: Genes, layout: Layout) -> Genes:
    """Shift the scores of each layer so that its threshold is 0: kept above, dropped at most 0.

    Then a global top-k gives the same mask, and gradient steps can move weights between layers.
    Genes without counts have one threshold already and are returned unchanged.
    """
    return genes if genes.counts is None else _threshold_at_zero(genes, layout, torch.float32)


def _threshold_at_zero(genes: Genes, layout: Layout, dtype: torch.dtype) -> Genes:
    mask, ranking = genes.decode(layout), genes.as_float32().ranking
    shifted = torch.empty(layout.total, dtype=dtype)
    if layout.n_of_m is not None:
        # under an N:M pattern every group of M weights has a threshold of its own
        dims = layout.slices, layout.shapes
        thresholds = layout.n_of_m.cuts(ranking, mask, *dims)
        parts = (layout.n_of_m.groups(flat, *dims) for flat in (mask, shifted))
        for (scores, threshold), keep_mask, out in zip(thresholds, *parts, strict=True):
            _shift(scores, threshold, keep_mask, out)
        return replace(genes, scores=shifted, absolute=False)
    gaps = [_gap(ranking[part], mask[part]) for part in layout.slices]
    # with MAC costs, cheap units are kept below better ones, so there is no common threshold
    common = genes.counts is None and layout.mac_cost is None
    if common:
        fixed = layout.fixed_counts or (None,) * len(gaps)
        layer_thresholds = _common_thresholds(gaps, [count is None for count in fixed])
    else:
        layer_thresholds = [_middle(*gap) for gap in gaps]
    for part, threshold in zip(layout.slices, layer_thresholds, strict=True):
        pieces = (flat[part].split(PIECE) for flat in (ranking, mask, shifted))
        for scores, keep_mask, out in zip(*pieces, strict=True):
            _shift(scores, threshold, keep_mask, out)
    return replace(genes, scores=shifted, absolute=False)


def _shift(scores: Tensor, threshold: Tensor | float, keep_mask: Tensor, out: Tensor) -> None:
    """Write `scores - threshold` to `out`, clamped to above 0 for kept weights and to 0 for others.

    Ties and rounding could put both sides at 0; then the index, not the mask, would decide.
    """
    least, most = _BOUNDS[out.dtype]
    shifted = (scores - threshold).float()
    out.copy_(torch.where(keep_mask, shifted.clamp(least, most), shifted.clamp(-most, 0)))


def _gap(scores: Tensor, mask: Tensor) -> tuple[float, float]:
    """Return the lowest kept score and the highest dropped one, −∞ if all are kept."""
    pieces = list(zip(scores.split(PIECE), mask.split(PIECE), strict=True))
    return (
        min(float(part.masked_fill(~keep_mask, inf).min()) for part, keep_mask in pieces),
        max(float(part.masked_fill(keep_mask, -inf).max()) for part, keep_mask in pieces),
    )


def _middle(lowest: float, highest: float) -> float:
    return lowest if highest == -inf else (lowest + highest) / 2


def _common_thresholds(
    gaps: Sequence[tuple[float, float]], is_ranked: Sequence[bool]
) -> list[float]:
    """Return the threshold of one ranking for each layer, moved where the floor keeps more weights.

    `gaps` holds the lowest kept and the highest dropped score of every layer; layers with a fixed
    count take no part in the ranking.
    """
    ranked = [gap for gap, is_free in zip(gaps, is_ranked, strict=True) if is_free] or list(gaps)
    highest = max(high for _, high in ranked)
    threshold = _middle(min((low for low, _ in ranked if low >= highest), default=highest), highest)
    return [min(max(threshold, high), low) for low, high in gaps]
