"""Mutation and crossover: what is conserved, what may move, and where randomness comes from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from search_cases import layout_of, layouts_with_counts, random_genes, score_vectors, seeded

from gaprune.evolution.genome import Genes
from gaprune.evolution.operators import (
    CROSSOVERS,
    MUTATIONS,
    budget_shift,
    threshold_swap,
    uniform_reset,
)
from gaprune.masks.supermask import Layout, layer_counts

LayoutCounts = tuple[Layout, tuple[int, ...]]
EXCHANGES = sorted(set(CROSSOVERS) - {"averaging"})
KINDS = ["allocated", "global", "layer", "absolute"]
FEW = settings(max_examples=40)
WIDE = layout_of([400, 100, 500])


@st.composite
def cases(draw: st.DrawFn) -> tuple[Layout, Genes, Genes, int]:
    """A layout, two genes of one kind (their budgets may differ, save for fixed ones), a seed."""
    layout, counts = draw(layouts_with_counts())
    kind = draw(st.sampled_from([*KINDS, "absolute-global"]))
    made = []
    for _ in range(2):
        own = counts if kind == "layer" else tuple(draw(st.integers(1, n)) for n in layout.sizes)
        scores, keep = draw(score_vectors(layout.total)), sum(own)
        shared = None if "global" in kind else own
        made.append(Genes(scores, shared, keep, kind == "layer", "absolute" in kind))
    return layout, made[0], made[1], draw(st.integers(0, 2**32))


def copied(genes: Genes) -> Genes:
    """Return genes with scores of their own."""
    return genes.with_scores(genes.scores.clone())


def assert_same(one: Genes, other: Genes) -> None:
    """Check that scores, counts, budget and kind are equal."""
    assert torch.equal(one.scores, other.scores)
    assert replace(one, scores=other.scores).__dict__ == other.__dict__


def assert_in_budget(child: Genes, parent: Genes, layout: Layout) -> None:
    """Check the exact total, bounds of every layer, and what scope and ranking promise."""
    mask = child.decode(layout)
    kept = layer_counts(mask, layout)
    assert child.keep == parent.keep == sum(kept)
    assert all(1 <= count <= size for count, size in zip(kept, layout.sizes, strict=True))
    assert child.counts is None or list(child.counts) == kept
    assert (child.counts is None) == (parent.counts is None)
    assert child.fixed == parent.fixed
    assert not child.fixed or child.counts == parent.counts
    assert child.scores.dtype == torch.float32
    assert child.scores.isfinite().all()


@pytest.mark.parametrize("name", CROSSOVERS)
@FEW
@given(case=cases())
def test_crossovers_stay_in_budget_and_leave_the_parents_alone(
    name: str, case: tuple[Layout, Genes, Genes, int]
) -> None:
    """Both children keep exactly what the parent they descend from keeps; no memory is shared."""
    layout, a, b, seed = case
    before = copied(a), copied(b)
    children = CROSSOVERS[name](a, b, layout, seeded(seed))
    for child, parent in zip(children, before, strict=True):
        assert_in_budget(child, parent, layout)
        child.scores.fill_(float("nan"))
    assert_same(a, before[0])
    assert_same(b, before[1])


@pytest.mark.parametrize("name", EXCHANGES)
@FEW
@given(case=cases())
def test_exchanging_crossovers_lose_no_gene(
    name: str, case: tuple[Layout, Genes, Genes, int]
) -> None:
    """At every position the two children hold what the two parents held."""
    layout, a, b, seed = case
    first, second = CROSSOVERS[name](a, b, layout, seeded(seed))
    held = torch.stack([a.scores, b.scores]).sort(0).values
    assert torch.equal(torch.stack([first.scores, second.scores]).sort(0).values, held)


@FEW
@given(case=cases())
def test_averaging_conserves_the_sum(case: tuple[Layout, Genes, Genes, int]) -> None:
    """At every position the children add up to the parents and lie between them."""
    layout, a, b, seed = case
    first, second = CROSSOVERS["averaging"](a, b, layout, seeded(seed))
    size = torch.maximum(a.scores.abs(), b.scores.abs())
    off = (first.scores.double() + second.scores - (a.scores.double() + b.scores)).abs()
    assert (off <= 1e-6 * size).all()
    low, high = torch.minimum(a.scores, b.scores), torch.maximum(a.scores, b.scores)
    for child in (first, second):
        assert ((child.scores >= low - 1e-6 * size) & (child.scores <= high + 1e-6 * size)).all()


def marked() -> tuple[Genes, Genes]:
    """Return parents on `WIDE` whose scores tell where a gene came from: 0 or 1."""
    return (
        Genes(torch.zeros(WIDE.total), (40, 10, 50), 100),
        Genes(torch.ones(WIDE.total), (10, 60, 30), 100),
    )


def test_one_point_exchanges_the_tail_of_every_layer() -> None:
    """Each layer of a child is a head of one parent and a tail of the other, cut anywhere."""
    cuts = []
    for seed in range(20):
        first, _ = CROSSOVERS["one-point"](*marked(), WIDE, seeded(seed))
        for part, size in zip(WIDE.slices, WIDE.sizes, strict=True):
            layer = first.scores[part]
            assert (layer.diff() >= 0).all()
            cuts.append(float(layer.mean() * size) / size)
    assert min(cuts) < 0.2
    assert max(cuts) > 0.8


def test_whole_layer_exchanges_layers_with_their_counts() -> None:
    """A layer comes from one parent; where the totals allow, its keep count comes with it."""
    a, b = marked()
    seen = set()
    for seed in range(30):
        first, _ = CROSSOVERS["whole-layer"](a, b, WIDE, seeded(seed))
        layers = [set(first.scores[part].tolist()) for part in WIDE.slices]
        assert all(len(layer) == 1 for layer in layers)
        chosen = tuple(int(layer.pop()) for layer in layers)
        seen.add(chosen)
        counts = [
            (a.counts or ())[i] if one == 0 else (b.counts or ())[i] for i, one in enumerate(chosen)
        ]
        if sum(counts) == a.keep:
            assert first.counts == tuple(counts)
    assert len(seen) == 8


def test_crossovers_mix_the_counts_as_they_mix_the_scores() -> None:
    """Half of the scores, half of the counts: uniform crossover lands near the parents' mean."""
    first, second = CROSSOVERS["uniform"](*marked(), WIDE, seeded(4))
    for child in (first, second):
        assert child.counts == pytest.approx((25, 35, 40), abs=4)


@pytest.mark.parametrize("name", MUTATIONS)
@FEW
@given(case=cases())
def test_mutations_stay_in_budget_and_leave_the_parent_alone(
    name: str, case: tuple[Layout, Genes, Genes, int]
) -> None:
    """The child keeps exactly what its parent keeps, and the parent's bits stay."""
    layout, parent, _, seed = case
    before = copied(parent)
    child = MUTATIONS[name](parent, layout, seeded(seed))
    assert_same(parent, before)
    if child.scores.data_ptr() == parent.scores.data_ptr():  # shared only where nothing changed
        assert torch.equal(child.scores, before.scores)
    assert_in_budget(child, before, layout)


ALL = [pytest.param(name, id=name) for name in [*MUTATIONS, *CROSSOVERS]]


def vary(name: str, seed: int) -> Genes:
    """Apply an operator to fixed parents on `WIDE`."""
    a, b = (random_genes(WIDE, 100, parent) for parent in (1, 2))
    if name in MUTATIONS:
        return MUTATIONS[name](a, WIDE, seeded(seed))
    return CROSSOVERS[name](a, b, WIDE, seeded(seed))[0]


@pytest.mark.parametrize("name", ALL)
def test_the_generator_alone_decides(name: str) -> None:
    """Equal generators give equal children; torch's own generator is neither used nor moved."""
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = vary(name, 5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert_same(first, vary(name, 5))
    children = [vary(name, seed) for seed in range(6)]
    assert len({(tuple(child.scores.tolist()), child.counts) for child in children}) > 1


@FEW
@given(st.floats(0, 1), st.floats(-5, 0), st.floats(0.5, 5), st.integers(0, 2**32))
def test_uniform_reset_redraws_a_fraction_between_its_bounds(
    rate: float, low: float, high: float, seed: int
) -> None:
    """New scores lie in [low, high]; how many there are is binomial."""
    parent = Genes(torch.full((WIDE.total,), 100.0), (40, 10, 50), 100)
    child = uniform_reset(parent, WIDE, seeded(seed), rate=rate, low=low, high=high)
    fresh = child.scores[child.scores != 100]
    assert ((fresh >= low) & (fresh <= high)).all()
    deviation = (WIDE.total * rate * (1 - rate)) ** 0.5
    assert abs(len(fresh) - WIDE.total * rate) <= 6 * deviation + 1


@pytest.mark.parametrize("kind", KINDS)
def test_threshold_swap_exchanges_weights_near_the_cut_of_one_layer(kind: str) -> None:
    """As many leave as enter, from the nearest quarter on both sides; the scores are the same."""
    scope = "allocated" if kind == "absolute" else kind
    parent = random_genes(WIDE, 200, 3, scope, absolute=kind == "absolute")
    before = parent.decode(WIDE)
    touched = set()
    for seed in range(20):
        child = threshold_swap(parent, WIDE, seeded(seed), rate=0.1, reach=0.25)
        mask = child.decode(WIDE)
        assert torch.equal(child.scores.sort().values, parent.scores.sort().values)
        layers = [i for i, part in enumerate(WIDE.slices) if (mask != before)[part].any()]
        assert len(layers) == 1
        touched.add(layers[0])
        part = WIDE.slices[layers[0]]
        strength, kept = parent.ranking[part], before[part]
        count = int(kept.count_nonzero())
        window = min(max(1, round(count / 4)), len(kept) - count)
        left, entered = kept & ~mask[part], mask[part] & ~kept
        assert left.sum() == entered.sum() == max(1, min(window, round(0.1 * count)))
        assert strength[left].max() <= strength[kept].sort().values[window - 1]
        assert strength[entered].min() >= strength[~kept].sort(descending=True).values[window - 1]
    assert len(touched) == 3


@FEW
@given(case=cases(), rate=st.floats(0.01, 1))
def test_budget_shift_moves_counts_between_two_layers(
    case: tuple[Layout, Genes, Genes, int], rate: float
) -> None:
    """What one layer gives another takes, up to the rate; all others keep the same weights."""
    layout, parent, _, seed = case
    assume(not parent.fixed)
    before = parent.decode(layout)
    after = budget_shift(parent, layout, seeded(seed), rate=rate).decode(layout)
    old, new = layer_counts(before, layout), layer_counts(after, layout)
    changes = [b - a for a, b in zip(old, new, strict=True) if a != b]
    assert sum(changes) == 0
    assert len(changes) in (0, 2)
    if changes:
        smaller = min(a for a, b in zip(old, new, strict=True) if a != b)
        assert max(changes) <= max(1, round(rate * smaller))
    for part, a, b in zip(layout.slices, old, new, strict=True):
        gained, lost = after[part] & ~before[part], before[part] & ~after[part]
        assert not (gained.any() and lost.any())  # the ranking inside a layer stays
        assert a != b or torch.equal(before[part], after[part])


def test_fixed_counts_never_change() -> None:
    """In scope `layer` every operator leaves all keep counts, also between parents that differ."""
    a, b = (random_genes(WIDE, 100, seed, "layer") for seed in (1, 2))
    assert budget_shift(a, WIDE, seeded()) is a
    other = replace(b, counts=(30, 20, 50))
    for name, cross in CROSSOVERS.items():
        children = cross(a, other, WIDE, seeded())
        assert [child.counts for child in children] == [a.counts, other.counts], name
