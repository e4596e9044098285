"""Mutation and crossover as pure functions on genes; each can be used alone.

Every operator takes a `torch.Generator` and returns new genes. DEAP's stock array operators alias
slices and lose genes, so these are our own; `toolbox.py` registers them. In every crossover no
gene is lost: at each position the two children hold what the two parents held (or, averaging, the
same sum).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Generator, Tensor

from gaprune import plugins
from gaprune.errors import unknown_name
from gaprune.evolution.genome import Genes, align
from gaprune.masks.budget import apportion
from gaprune.masks.supermask import Layout, layer_counts, top_k_mask

Mutation = Callable[[Genes, Layout, Generator], Genes]
Crossover = Callable[[Genes, Genes, Layout, Generator], tuple[Genes, Genes]]
Operator = TypeVar("Operator")


def uniform_reset(
    genes: Genes,
    layout: Layout,
    generator: Generator,
    *,
    rate: float = 0.002,
    low: float | None = None,
    high: float | None = None,
) -> Genes:
    """Draw a fraction `rate` of the scores anew, uniformly between `low` and `high`.

    Without bounds, the range of the parent's own scores.
    """
    scores = genes.scores
    low = float(scores.min()) if low is None else low
    high = float(scores.max()) if high is None else high
    chosen = _sample(scores.numel(), rate, generator)
    fresh = torch.rand(len(chosen), generator=generator) * (high - low) + low
    return genes.with_scores(scores.index_copy(0, chosen, fresh))


def gaussian(
    genes: Genes, layout: Layout, generator: Generator, *, rate: float = 0.05, sigma: float = 0.05
) -> Genes:
    """Add normal noise of deviation `sigma` to a fraction `rate` of the scores."""
    chosen = _sample(genes.scores.numel(), rate, generator)
    noise = torch.randn(len(chosen), generator=generator) * sigma
    return genes.with_scores(genes.scores.index_add(0, chosen, noise))


def threshold_swap(
    genes: Genes, layout: Layout, generator: Generator, *, rate: float = 0.02, reach: float = 0.25
) -> Genes:
    """Exchange the scores of kept and dropped weights near the cut of one random layer.

    `rate` of the layer's kept weights leave; both sides are drawn from the nearest `reach` of the
    kept ones (and as many dropped ones), where the ranking is least sure. Under a quota both are of
    the same group.
    """
    index = _draw_layers(layout, 1, generator)[0]
    if layout.n_of_m is not None:
        return _swapped_in_groups(genes, layout, index, generator, rate, reach)
    part, size = layout.slices[index], layout.sizes[index]
    kept = genes.decode(layout)[part]
    count = int(kept.count_nonzero())
    window = min(max(1, round(count * reach)), count, size - count)
    if window == 0:
        return genes
    strength = genes.ranking[part]
    lowest, highest = _best(-strength, kept, window), _best(strength, ~kept, window)
    swaps = max(1, min(window, round(count * rate)))
    leaving = lowest[torch.randperm(window, generator=generator)[:swaps]]
    entering = highest[torch.randperm(window, generator=generator)[:swaps]]
    scores = genes.scores.clone()
    layer = scores[part]
    layer[leaving], layer[entering] = layer[entering], layer[leaving]
    return genes.with_scores(scores)


def _swapped_in_groups(
    genes: Genes, layout: Layout, index: int, generator: Generator, rate: float, reach: float
) -> Genes:
    """Exchange the last kept and the first dropped weight of groups in which they are near."""
    assert layout.n_of_m is not None
    parts = (genes.ranking, genes.decode(layout), torch.arange(layout.total))
    where = layout.slices, layout.shapes
    strength, kept, places = (
        list(layout.n_of_m.groups(one, *where))[index] for one in parts
    )  # [groups, M, positions]
    if strength.ndim == 1:  # all of it stays
        return genes
    low, last = strength.masked_fill(~kept, torch.inf).min(1, keepdim=True)
    high, first = strength.masked_fill(kept, -torch.inf).max(1, keepdim=True)
    gaps = (low - high).flatten()
    window = max(1, round(len(gaps) * reach))
    near = gaps.argsort(stable=True)[:window]
    swaps = max(1, min(window, round(len(gaps) * rate)))
    chosen = near[torch.randperm(window, generator=generator)[:swaps]]
    leaving, entering = (places.gather(1, one).flatten()[chosen] for one in (last, first))
    scores = genes.scores.clone()
    scores[leaving], scores[entering] = genes.scores[entering], genes.scores[leaving]
    return genes.with_scores(scores)


def budget_shift(
    genes: Genes, layout: Layout, generator: Generator, *, rate: float = 0.05
) -> Genes:
    """Move keep counts from one layer to another; the total stays.

    Up to `rate` of the smaller layer's keep count moves, at least one weight, and no layer falls
    below its least or rises above its size. Genes without counts (one ranking over all layers)
    shift by moving every layer's cut to 0. Genes of fixed counts come back as they are.
    """
    if genes.fixed or len(layout.sizes) < 2:
        return genes
    counts = _counts(genes, layout)
    giver, taker = torch.randperm(len(counts), generator=generator)[:2].tolist()
    most = max(1, round(rate * min(counts[giver], counts[taker])))
    moved = _moved(genes, counts, (giver, taker, most), layout, generator)
    return genes if moved == counts else _recount(genes, layout, moved)


def reallocate(
    genes: Genes, layout: Layout, generator: Generator, *, rate: float = 0.25, moves: int = 3
) -> Genes:
    """Move keep counts between one to `moves` pairs of layers; the total stays.

    After the level switches of EvoPress (Sieberling et al. 2024, arXiv 2410.14649). Layers are
    drawn in proportion to the square root of their sizes. A move is up to `rate` of what the
    smaller of both would keep at equal density, so it is as long forth as back, and a layer that
    keeps next to nothing can grow again. For the rest see `budget_shift`.
    """
    if genes.fixed or len(layout.sizes) < 2:
        return genes
    before = counts = _counts(genes, layout)
    density = genes.keep / layout.dense_cost
    for _ in range(int(torch.randint(1, moves + 1, (), generator=generator))):
        giver, taker = _draw_layers(layout, 2, generator)
        smaller = min(layout.sizes[giver], layout.sizes[taker])
        most = max(1, round(rate * density * smaller))
        counts = _moved(genes, counts, (giver, taker, most), layout, generator)
    return genes if counts == before else _recount(genes, layout, counts)


def one_point(a: Genes, b: Genes, layout: Layout, generator: Generator) -> tuple[Genes, Genes]:
    """Cut every layer at a random position and exchange the tails."""
    swap = torch.zeros(layout.total, dtype=torch.bool)
    for part, size in zip(layout.slices, layout.sizes, strict=True):
        swap[part][int(torch.randint(0, size + 1, (), generator=generator)) :] = True
    return _exchange(a, b, layout, swap)


def uniform(a: Genes, b: Genes, layout: Layout, generator: Generator) -> tuple[Genes, Genes]:
    """Exchange every score with probability one half."""
    return _exchange(a, b, layout, torch.rand(layout.total, generator=generator) < 0.5)


def whole_layer(a: Genes, b: Genes, layout: Layout, generator: Generator) -> tuple[Genes, Genes]:
    """Exchange whole layers, each with probability one half, with their keep counts."""
    chosen = torch.rand(len(layout.sizes), generator=generator) < 0.5
    swap = chosen.repeat_interleave(torch.tensor(layout.sizes))
    return _exchange(a, b, layout, swap)


def averaging(a: Genes, b: Genes, layout: Layout, generator: Generator) -> tuple[Genes, Genes]:
    """Mix the parents' scores w : 1 − w and 1 − w : w, w uniform in [0.25, 0.75]; the sum stays."""
    weight = float(torch.rand((), generator=generator)) * 0.5 + 0.25
    first = torch.lerp(a.scores, b.scores, weight)
    second = torch.lerp(a.scores, b.scores, 1 - weight)
    return (
        replace(a, scores=first, counts=_mixed_counts(a, b, layout, weight)),
        replace(b, scores=second, counts=_mixed_counts(b, a, layout, weight)),
    )


def _best(scores: Tensor, among: Tensor, count: int) -> Tensor:
    """Return the places of the best `count` of those marked, best first; ties in index order."""
    places = top_k_mask(scores.masked_fill(~among, -torch.inf), count).nonzero().flatten()
    return places[scores[places].argsort(stable=True, descending=True)]


def _sample(total: int, rate: float, generator: Generator) -> Tensor:
    """Return sorted distinct indices, binomially many: as if each were drawn with `rate`."""
    return (torch.rand(total, generator=generator) < rate).nonzero().flatten()


def _draw_layers(layout: Layout, number: int, generator: Generator) -> list[int]:
    """Draw different layers with probability proportional to the square root of their sizes."""
    chances = torch.tensor(layout.sizes, dtype=torch.float64).sqrt()
    return [int(index) for index in torch.multinomial(chances, number, generator=generator)]


def _counts(genes: Genes, layout: Layout) -> list[int]:
    return list(genes.counts or layer_counts(genes.decode(layout), layout))


def _moved(
    genes: Genes,
    counts: list[int],
    move: tuple[int, int, int],
    layout: Layout,
    generator: Generator,
) -> list[int]:
    """Return the counts after one layer gave another 1 to `most`, as far as both have room.

    Where the layout has a price, the other one takes so many, and the first gives what pays them.
    """
    giver, taker, most = move
    wanted = int(torch.randint(1, most + 1, (), generator=generator))
    if layout.mac_cost is not None:
        return layout.mac_cost.transfer(
            counts, (giver, taker, wanted), layout.min_counts, genes.keep
        )
    room = layout.sizes[taker] - counts[taker]
    amount = max(0, min(wanted, counts[giver] - layout.min_counts[giver], room))
    moved = list(counts)
    moved[giver] -= amount
    moved[taker] += amount
    return moved


def _recount(genes: Genes, layout: Layout, counts: list[int]) -> Genes:
    recounted = replace(genes, counts=tuple(counts))
    if genes.counts is not None:
        return recounted
    return replace(align(recounted, layout), counts=None)


def _exchange(a: Genes, b: Genes, layout: Layout, swap: Tensor) -> tuple[Genes, Genes]:
    fraction = np.array(layer_counts(swap, layout)) / np.array(layout.sizes)
    return (
        replace(
            a,
            scores=torch.where(swap, b.scores, a.scores),
            counts=_mixed_counts(a, b, layout, fraction),
        ),
        replace(
            b,
            scores=torch.where(swap, a.scores, b.scores),
            counts=_mixed_counts(b, a, layout, fraction),
        ),
    )


def _mixed_counts(
    a: Genes, b: Genes, layout: Layout, weight: float | np.ndarray
) -> tuple[int, ...] | None:
    """Mix keep counts like the scores, rounded to the exact total of `a`; fixed ones stay."""
    if a.counts is None or b.counts is None or a.fixed or a.counts == b.counts:
        return a.counts
    mixed = np.asarray(a.counts) * (1 - weight) + np.asarray(b.counts) * weight
    if layout.mac_cost is not None:
        return tuple(layout.mac_cost.apportion(mixed, layout.min_counts, a.keep))
    return tuple(apportion(mixed, a.keep, layout.sizes, layout.min_counts))


def find_mutation(name: str) -> Mutation:
    """Return a mutation by name: our own, or a plug-in's.

    Raises:
        InputError: an unknown name, or a plug-in that is broken.
    """
    return _find("mutation", name, MUTATIONS, plugins.MUTATIONS)


def find_crossover(name: str) -> Crossover:
    """Return a crossover by name: our own, or a plug-in's.

    Raises:
        InputError: an unknown name, or a plug-in that is broken.
    """
    return _find("crossover", name, CROSSOVERS, plugins.CROSSOVERS)


def _find(what: str, name: str, own: Mapping[str, Operator], group: str) -> Operator:
    found: Any = own.get(name) or plugins.find_plugin(group, name, plugins.require_function)
    if found is None:
        raise unknown_name(what, name, [*own, *plugins.plugin_names(group, own)])
    operator: Operator = found
    return operator


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
