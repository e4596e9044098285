"""Mutation and crossover as pure functions: genes and a generator in, new genes out.

DEAP's array operators alias slices and lose genes, so these are our own. No crossover loses a gene:
at each position the two children have the two scores of their parents (averaging: the same sum).
The parents stay unchanged, and an operator that cannot change anything returns its parent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Generator, Tensor

from gaprune import plugins
from gaprune.evolution.genome import Genes, align
from gaprune.masks.budget import apportion
from gaprune.masks.supermask import Layout, layer_counts, top_k_mask

Mutation = Callable[[Genes, Layout, Generator], Genes]
Crossover = Callable[[Genes, Genes, Layout, Generator], tuple[Genes, Genes]]


def uniform_reset(
    genes: Genes,
    layout: Layout,
    generator: Generator,
    *,
    rate: float = 0.002,
    low: float | None = None,
    high: float | None = None,
) -> Genes:
    """Redraw a fraction `rate` of the scores uniformly from [`low`, `high`).

    The bounds default to the range of the parent's scores.
    """
    scores = genes.scores
    low = float(scores.min()) if low is None else low
    high = float(scores.max()) if high is None else high
    indices = _sample(scores.numel(), rate, generator)
    fresh = torch.rand(len(indices), generator=generator) * (high - low) + low
    return genes.with_scores(scores.index_copy(0, indices, fresh))


def gaussian(
    genes: Genes, layout: Layout, generator: Generator, *, rate: float = 0.05, sigma: float = 0.05
) -> Genes:
    """Add Gaussian noise of standard deviation `sigma` to a fraction `rate` of the scores."""
    indices = _sample(genes.scores.numel(), rate, generator)
    noise = torch.randn(len(indices), generator=generator) * sigma
    return genes.with_scores(genes.scores.index_add(0, indices, noise))


def threshold_swap(
    genes: Genes, layout: Layout, generator: Generator, *, rate: float = 0.02, reach: float = 0.25
) -> Genes:
    """Swap the scores of kept and dropped weights near the threshold of one random layer.

    A fraction `rate` of the layer's kept weights is replaced. Both sides of the swaps are drawn
    from the weights closest to the threshold, where the ranking is least certain: as many as a
    fraction `reach` of the kept weights. Under an N:M pattern both are in the same group.
    """
    index = _draw_layers(layout, 1, generator)[0]
    if layout.n_of_m is not None:
        return _swap_in_groups(genes, layout, index, generator, rate, reach)
    part, size = layout.slices[index], layout.sizes[index]
    mask = genes.decode(layout)[part]
    count = int(mask.count_nonzero())
    window = min(max(1, round(count * reach)), count, size - count)
    if window == 0:
        return genes
    ranking = genes.ranking[part]
    lowest, highest = _top(-ranking, mask, window), _top(ranking, ~mask, window)
    swaps = max(1, min(window, round(count * rate)))
    leaving = lowest[torch.randperm(window, generator=generator)[:swaps]]
    entering = highest[torch.randperm(window, generator=generator)[:swaps]]
    scores = genes.scores.clone()
    layer = scores[part]
    layer[leaving], layer[entering] = layer[entering], layer[leaving]
    return genes.with_scores(scores)


def _swap_in_groups(
    genes: Genes, layout: Layout, index: int, generator: Generator, rate: float, reach: float
) -> Genes:
    """Swap the lowest kept and highest dropped weight in groups where their scores are close."""
    assert layout.n_of_m is not None
    dims = layout.slices, layout.shapes
    ranking, mask, positions = (
        list(layout.n_of_m.groups(flat, *dims))[index]  # [groups, M, positions]
        for flat in (genes.ranking, genes.decode(layout), torch.arange(layout.total))
    )
    if ranking.ndim == 1:  # the pattern does not apply to this layer: all of it is kept
        return genes
    low, last = ranking.masked_fill(~mask, torch.inf).min(1, keepdim=True)
    high, first = ranking.masked_fill(mask, -torch.inf).max(1, keepdim=True)
    gaps = (low - high).flatten()
    window = max(1, round(len(gaps) * reach))
    closest = gaps.argsort(stable=True)[:window]
    swaps = max(1, min(window, round(len(gaps) * rate)))
    groups = closest[torch.randperm(window, generator=generator)[:swaps]]
    leaving, entering = (positions.gather(1, rows).flatten()[groups] for rows in (last, first))
    scores = genes.scores.clone()
    scores[leaving], scores[entering] = genes.scores[entering], genes.scores[leaving]
    return genes.with_scores(scores)


def budget_shift(
    genes: Genes, layout: Layout, generator: Generator, *, rate: float = 0.05
) -> Genes:
    """Move part of the keep count of one layer to another; the total is unchanged.

    At least one weight and up to `rate` of the smaller keep count moves. No layer falls below its
    minimum or exceeds its size. Genes without counts are aligned instead, so that their common
    threshold gives the new counts. Genes with fixed counts are returned unchanged.
    """
    if genes.fixed or len(layout.sizes) < 2:
        return genes
    counts = _keep_counts(genes, layout)
    giver, taker = torch.randperm(len(counts), generator=generator)[:2].tolist()
    most = max(1, round(rate * min(counts[giver], counts[taker])))
    moved = _move(genes, counts, (giver, taker, most), layout, generator)
    return genes if moved == counts else _with_counts(genes, layout, moved)


def reallocate(
    genes: Genes, layout: Layout, generator: Generator, *, rate: float = 0.25, moves: int = 3
) -> Genes:
    """Move keep counts between 1 to `moves` pairs of layers; the total is unchanged.

    The level switch of EvoPress (Sieberling et al. 2024, arXiv 2410.14649). Layers are drawn with
    probability proportional to the square root of their size. A move is at most `rate` of what the
    smaller layer keeps at equal density: this does not depend on the counts, so moves are as long
    in both directions, and a nearly empty layer can grow again. Otherwise as `budget_shift`.
    """
    if genes.fixed or len(layout.sizes) < 2:
        return genes
    before = counts = _keep_counts(genes, layout)
    density = genes.keep / layout.dense_cost
    for _ in range(int(torch.randint(1, moves + 1, (), generator=generator))):
        giver, taker = _draw_layers(layout, 2, generator)
        smaller = min(layout.sizes[giver], layout.sizes[taker])
        most = max(1, round(rate * density * smaller))
        counts = _move(genes, counts, (giver, taker, most), layout, generator)
    return genes if counts == before else _with_counts(genes, layout, counts)


def one_point(a: Genes, b: Genes, layout: Layout, generator: Generator) -> tuple[Genes, Genes]:
    """Cut every layer at a random position and exchange the tails."""
    swap = torch.zeros(layout.total, dtype=torch.bool)
    for part, size in zip(layout.slices, layout.sizes, strict=True):
        swap[part][int(torch.randint(0, size + 1, (), generator=generator)) :] = True
    return _exchange(a, b, layout, swap)


def uniform(a: Genes, b: Genes, layout: Layout, generator: Generator) -> tuple[Genes, Genes]:
    """Exchange every score with probability 1/2."""
    return _exchange(a, b, layout, torch.rand(layout.total, generator=generator) < 0.5)


def whole_layer(a: Genes, b: Genes, layout: Layout, generator: Generator) -> tuple[Genes, Genes]:
    """Exchange whole layers with their keep counts, each with probability 1/2."""
    layers = torch.rand(len(layout.sizes), generator=generator) < 0.5
    swap = layers.repeat_interleave(torch.tensor(layout.sizes))
    return _exchange(a, b, layout, swap)


def averaging(a: Genes, b: Genes, layout: Layout, generator: Generator) -> tuple[Genes, Genes]:
    """Mix the parents w : 1 − w and 1 − w : w with w uniform in [0.25, 0.75)."""
    weight = float(torch.rand((), generator=generator)) * 0.5 + 0.25
    first = torch.lerp(a.scores, b.scores, weight)
    second = torch.lerp(a.scores, b.scores, 1 - weight)
    return (
        replace(a, scores=first, counts=_mix_counts(a, b, layout, weight)),
        replace(b, scores=second, counts=_mix_counts(b, a, layout, weight)),
    )


def _top(scores: Tensor, allowed: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` highest allowed scores, highest first; ties by index."""
    indices = top_k_mask(scores.masked_fill(~allowed, -torch.inf), count).nonzero().flatten()
    return indices[scores[indices].argsort(stable=True, descending=True)]


def _sample(total: int, rate: float, generator: Generator) -> Tensor:
    """Return sorted indices below `total`, each drawn independently with probability `rate`."""
    return (torch.rand(total, generator=generator) < rate).nonzero().flatten()


def _draw_layers(layout: Layout, number: int, generator: Generator) -> list[int]:
    """Draw distinct layers with probability proportional to the square root of their size."""
    weights = torch.tensor(layout.sizes, dtype=torch.float64).sqrt()
    return [int(index) for index in torch.multinomial(weights, number, generator=generator)]


def _keep_counts(genes: Genes, layout: Layout) -> list[int]:
    return list(genes.counts or layer_counts(genes.decode(layout), layout))


def _move(
    genes: Genes,
    counts: list[int],
    move: tuple[int, int, int],
    layout: Layout,
    generator: Generator,
) -> list[int]:
    """Return the counts after the first layer gives the second 1 to `most` weights, if it can.

    Under a MAC budget the second layer takes that many, and the first gives up as many MACs.
    """
    giver, taker, most = move
    amount = int(torch.randint(1, most + 1, (), generator=generator))
    if layout.mac_cost is not None:
        return layout.mac_cost.transfer(
            counts, (giver, taker, amount), layout.min_counts, genes.keep
        )
    free = layout.max_counts[taker] - counts[taker]
    amount = max(0, min(amount, counts[giver] - layout.min_counts[giver], free))
    moved = list(counts)
    moved[giver] -= amount
    moved[taker] += amount
    return moved


def _with_counts(genes: Genes, layout: Layout, counts: list[int]) -> Genes:
    changed = replace(genes, counts=tuple(counts))
    # without counts of their own, aligned scores under one threshold give the same counts
    return changed if genes.counts is not None else replace(align(changed, layout), counts=None)


def _exchange(a: Genes, b: Genes, layout: Layout, swap: Tensor) -> tuple[Genes, Genes]:
    """Exchange the marked scores; keep counts follow the exchanged fraction of each layer."""
    fraction = np.array(layer_counts(swap, layout)) / np.array(layout.sizes)
    first = torch.where(swap, b.scores, a.scores)
    second = torch.where(swap, a.scores, b.scores)
    return (
        replace(a, scores=first, counts=_mix_counts(a, b, layout, fraction)),
        replace(b, scores=second, counts=_mix_counts(b, a, layout, fraction)),
    )


def _mix_counts(
    a: Genes, b: Genes, layout: Layout, weight: float | np.ndarray
) -> tuple[int, ...] | None:
    """Interpolate keep counts from `a` to `b`, rounded to the exact budget of `a`."""
    if a.counts is None or b.counts is None or a.fixed or a.counts == b.counts:
        return a.counts
    mixed = np.asarray(a.counts) * (1 - weight) + np.asarray(b.counts) * weight
    if layout.mac_cost is not None:
        return tuple(layout.mac_cost.apportion(mixed, layout.min_counts, a.keep))
    return tuple(apportion(mixed, a.keep, layout.max_counts, layout.min_counts))


def find_mutation(name: str) -> Mutation:
    """Return a built-in mutation or that of a plug-in; see `plugins.find_extension`."""
    read = plugins.require_function
    return plugins.find_extension("mutation", name, MUTATIONS, plugins.MUTATIONS, read)


def find_crossover(name: str) -> Crossover:
    """Return a built-in crossover or that of a plug-in; see `plugins.find_extension`."""
    read = plugins.require_function
    return plugins.find_extension("crossover", name, CROSSOVERS, plugins.CROSSOVERS, read)


MUTATIONS: dict[str, Mutation] = {
    "uniform-reset": uniform_reset,
    "gaussian": gaussian,
    "threshold-swap": threshold_swap,
    "budget-shift": budget_shift,
    "reallocate": reallocate,
}
CROSSOVERS: dict[str, Crossover] = {
    "one-point": one_point,
    "uniform": uniform,
    "whole-layer": whole_layer,
    "averaging": averaging,
}
