"""Mutations, closely: how much moves, where to, and how far; found by changing operators.py."""

from __future__ import annotations

import pytest
import torch
from search_cases import layout_of, seeded

from gaprune.evolution.genome import Genes
from gaprune.evolution.operators import (
    CROSSOVERS,
    budget_shift,
    gaussian,
    reallocate,
    threshold_swap,
    uniform_reset,
)
from gaprune.masks.n_of_m import NOfM
from gaprune.masks.supermask import Layout

SEEDS = range(60)
MANY = layout_of([60] * 12)
PAIR = layout_of([80, 40])


def counted(layout: Layout, part: float = 0.5) -> Genes:
    """Return genes of falling scores that keep a part of every layer."""
    counts = tuple(round(size * part) for size in layout.sizes)
    return Genes(torch.rand(layout.total, generator=seeded(0)), counts, sum(counts))


def moved(genes: Genes, child: Genes) -> list[int]:
    """Return by how much every layer's count has changed."""
    assert genes.counts is not None
    assert child.counts is not None
    return [after - before for before, after in zip(genes.counts, child.counts, strict=True)]


@pytest.mark.parametrize(("moves", "most"), [(1, 2), (3, 6)])
def test_reallocation_moves_between_so_many_pairs(moves: int, most: int) -> None:
    """One to `moves` pairs of layers trade: never more layers change, and all of them do at times.

    With one move the two layers mirror each other.
    """
    genes = counted(MANY)
    changed = [moved(genes, reallocate(genes, MANY, seeded(k), moves=moves)) for k in SEEDS]
    layers = [sum(step != 0 for step in steps) for steps in changed]
    assert max(layers) == most
    assert min(layers) == 2
    assert all(sum(steps) == 0 for steps in changed)


@pytest.mark.parametrize("mutation", [budget_shift, reallocate])
def test_two_layers_are_enough_to_trade(mutation: object) -> None:
    """A network of two layers shifts its budget too; one of a single layer has nowhere to."""
    assert callable(mutation)
    genes = counted(PAIR)
    assert any(any(moved(genes, mutation(genes, PAIR, seeded(seed)))) for seed in SEEDS)
    alone = layout_of([50])
    single = counted(alone)
    assert mutation(single, alone, seeded(0)) is single


def test_a_budget_shift_moves_up_to_its_rate() -> None:
    """Of the smaller keep count: never more, and that much at times."""
    genes = counted(PAIR)  # keeps 40 and 20
    steps = [abs(moved(genes, budget_shift(genes, PAIR, seeded(k), rate=0.25))[0]) for k in SEEDS]
    assert (min(steps), max(steps)) == (1, 5)
    wide = layout_of([800, 400])
    own = counted(wide)  # keeps 400 and 200
    steps = [abs(moved(own, budget_shift(own, wide, seeded(k)))[0]) for k in SEEDS]
    assert (min(steps), max(steps)) == (1, 10)  # a twentieth by itself


def test_a_reallocation_moves_up_to_its_rate_of_equal_density() -> None:
    """Of what the smaller layer would keep at equal density, whatever it keeps now."""
    wide = layout_of([400, 80])
    counts = (119, 1)  # a density of a quarter: at equal density the smaller would keep 20
    genes = Genes(torch.rand(wide.total, generator=seeded(0)), counts, sum(counts))
    steps = [moved(genes, reallocate(genes, wide, seeded(k), rate=0.5, moves=1)) for k in SEEDS]
    gained = {step[1] for step in steps}
    assert (min(gained), max(gained)) == (0, 10)  # it has nothing to give


def test_one_point_cuts_from_before_the_first_to_behind_the_last() -> None:
    """So a layer may be exchanged as a whole, or not at all."""
    layout = layout_of([3])
    a = Genes(torch.zeros(3), (1,), 1)
    b = Genes(torch.ones(3), (1,), 1)
    cuts = {int(CROSSOVERS["one-point"](a, b, layout, seeded(k))[0].scores.sum()) for k in SEEDS}
    assert cuts == {0, 1, 2, 3}


def test_a_swap_of_the_nearest_exchanges_the_weakest_with_the_strongest() -> None:
    """Without reach the last kept weight and the first dropped one change places, nothing else."""
    for seed in SEEDS:
        genes = counted(layout_of([40]))
        layout = layout_of([40])
        child = threshold_swap(genes, layout, seeded(seed), rate=1e-9, reach=1e-9)
        order = genes.scores.argsort(descending=True)
        last, first = int(order[19]), int(order[20])
        changed = (child.scores != genes.scores).nonzero().flatten().tolist()
        assert sorted(changed) == sorted([last, first])
        assert child.scores[last] == genes.scores[first]
        assert bool(child.decode(layout)[first])


def quota_case(*, beside: bool = False) -> tuple[Layout, Genes]:
    """Return a 2:4 layout of one layer `[6, 8]`, or one more that stays whole, and genes."""
    names, shapes, axes = ("a", "b"), ((6, 8), (3, 3)), (1, None)
    many = 2 if beside else 1
    layout = Layout(names[:many], shapes[:many], n_of_m=NOfM(2, 4, axes[:many]))
    scores = torch.rand(layout.total, generator=seeded(1))
    return layout, Genes(scores, None, 24 + 9 * beside)


@pytest.mark.parametrize(("rate", "groups"), [(1e-9, 1), (0.5, 6), (1.0, 12)])
def test_a_swap_under_a_quota_stays_in_its_groups(rate: float, groups: int) -> None:
    """In so many groups the last kept and the first dropped weight change places."""
    layout, genes = quota_case()
    ranked = genes.scores.view(-1, 4).argsort(1, descending=True)
    for seed in SEEDS:
        child = threshold_swap(genes, layout, seeded(seed), rate=rate, reach=1.0)
        assert layout.satisfies_pattern(child.decode(layout))
        changed = (genes.decode(layout) != child.decode(layout)).view(-1, 4)
        chosen = changed.any(1)
        assert int(chosen.sum()) == groups
        cut = torch.zeros_like(changed).scatter_(1, ranked[:, 1:3], value=True)
        assert torch.equal(changed, cut & chosen.unsqueeze(1))


def test_a_swap_under_a_quota_takes_the_nearest_groups() -> None:
    """Without reach, the group whose two weights at the cut are nearest."""
    layout, genes = quota_case()
    ranked = genes.scores.view(-1, 4).sort(descending=True).values
    nearest = int((ranked[:, 1] - ranked[:, 2]).argmin())
    for seed in range(20):
        child = threshold_swap(genes, layout, seeded(seed), rate=1e-9, reach=1e-9)
        changed = (child.scores != genes.scores).view(-1, 4).any(1)
        assert changed.nonzero().flatten().tolist() == [nearest]


def test_mutations_touch_as_much_as_their_rates_say() -> None:
    """0.2 % of the scores are drawn anew, 5 % get noise of deviation 0.05."""
    layout = layout_of([200_000])
    genes = counted(layout)
    fresh = (uniform_reset(genes, layout, seeded(0)).scores != genes.scores).sum()
    assert abs(int(fresh) - 400) < 4 * 20  # deviations
    noisy = gaussian(genes, layout, seeded(0)).scores - genes.scores
    touched = noisy[noisy != 0]
    assert abs(len(touched) - 10_000) < 4 * 98
    assert float(touched.std()) == pytest.approx(0.05, rel=0.05)
    assert float(touched.mean()) == pytest.approx(0.0, abs=0.002)
