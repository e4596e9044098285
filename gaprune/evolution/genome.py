"""An individual of the search: per-layer score tensors, keep counts, and the mask they express."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from deap import base
from numpy.typing import NDArray
from torch import Tensor

from gaprune.supermask import Layout, global_mask, layer_counts, layered_mask, pack, unpack

EXACT = 1 << 24  # so many ranks and no more are all different in float32


@dataclass(frozen=True, eq=False)
class Genes:
    """What is inherited, and all that travels between workers.

    Attributes:
        scores: float32 `[layout.total]`, larger is kept first.
        counts: keep count of each layer, or None where all layers are ranked together
            (scope `global`).
        keep: kept weights of the whole network.
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
        """Return the flat bool mask `[layout.total]` with exactly `keep` entries true."""
        if self.counts is None:
            return global_mask(self.strength, layout, self.keep)
        return layered_mask(self.strength, layout, self.counts)

    def signed(self) -> Genes:
        """Return the same mask and budget with scores that are ranked as they stand."""
        return replace(self, scores=self.strength, absolute=False)

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
        fitness: the DEAP fitness; invalid until evaluated on all search probes.
        bits: the packed mask, expressed once; whoever knows it passes it on.
        mask: flat bool mask.
        key: hash of the mask.
        rate: this individual's own step length for gradient-informed mutation.
        origin: the baseline it was seeded from, or the operators that made it.
        sprint: fitness on the first rung of the race.
    """

    def __init__(
        self,
        genes: Genes,
        layout: Layout,
        origin: str,
        rate: float = 1.0,
        fitness: type[base.Fitness] = Fitness,
        bits: NDArray[np.uint8] | None = None,
    ) -> None:
        super().__init__(layout.split(genes.scores).values())
        self.genes = genes
        self.mask = genes.express(layout) if bits is None else unpack(bits, layout.total)
        self.bits = pack(self.mask) if bits is None else bits
        self.key = bits_key(self.bits)
        self.origin = origin
        self.rate = rate
        self.fitness = fitness()
        self.sprint = -float("inf")

    def at_budget(self, keep: int, layout: Layout) -> Individual:
        """Return the same scores with another number of kept weights, all layers together."""
        genes = replace(self.genes, keep=keep, counts=None)
        return Individual(genes, layout, self.origin, self.rate)

    @property
    def keep(self) -> int:
        """Kept weights of the whole network."""
        return self.genes.keep

    @property
    def quality(self) -> float:
        """Fitness on the search probes, the first DEAP fitness value."""
        return float(self.fitness.values[0])


def seed_genes(
    scores: Tensor, layout: Layout, keep: int, scope: str, uniform: Sequence[int] | None = None
) -> Genes:
    """Turn a saliency into genes at a budget.

    Args:
        scores: flat saliency `[layout.total]`, comparable across layers unless `uniform` is given.
        layout: the network's prunable layers.
        keep: kept weights of the whole network.
        scope: `allocated`, `global` or `layer`.
        uniform: keep counts of every layer at equal density (required by scope `layer`); without
            them the counts are those of the global ranking.
    """
    ranked = rank(scores)
    counts = uniform or layer_counts(global_mask(ranked, layout, keep), layout)
    genes = Genes(ranked, tuple(counts), keep, fixed=scope == "layer")
    if genes.fixed and ranked.dtype == torch.float32:
        return genes
    aligned = align(genes, layout)
    return replace(aligned, counts=None) if scope == "global" else aligned


def rank(scores: Tensor) -> Tensor:
    """Map scores to their rank in [0, 1), ties in reverse index order; of the same shape, CPU.

    Ranks give every criterion the same scale, so one step length suits them all. Equal scores get
    the lower index the higher rank, as `top_k_mask` keeps them. They are float32, or float64 where
    there are more than `EXACT`; `align` makes float32 of these that are exact around the cut.
    """
    flat, total = scores.reshape(-1).cpu(), scores.numel()
    kind = torch.float32 if total <= EXACT else torch.float64
    order = flat.flip(0).argsort(stable=True)
    ranks = torch.empty(total, dtype=kind)
    ranks[total - 1 - order] = torch.arange(total, dtype=kind) / total
    return ranks.view(scores.shape)


def align(genes: Genes, layout: Layout) -> Genes:
    """Shift each layer's scores so that its cut lies at 0: kept above, dropped at most 0; float32.

    Then one threshold serves all layers: a global top-k of aligned scores gives the same mask, and
    gradient-informed mutation can trade weights between layers. Genes without counts have one
    threshold already and come back as they are.
    """
    if genes.counts is None:
        return genes
    kept, shifted = genes.express(layout), genes.strength.clone()
    for part in layout.slices:
        shifted[part] -= _cut(shifted[part], kept[part])
    shifted = shifted.float()
    # Equal scores, or rounding, can put both sides of a cut at 0, and then the index would decide.
    above = shifted.clamp_min(torch.finfo(shifted.dtype).tiny)
    return genes.signed().with_scores(torch.where(kept, above, shifted.clamp_max(0)))


def _cut(scores: Tensor, kept: Tensor) -> float:
    """Return the middle between the lowest kept score and the highest dropped one."""
    lowest = scores[kept].min().double()
    return float(lowest if kept.all() else (lowest + scores[~kept].max().double()) / 2)
