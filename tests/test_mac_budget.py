"""Budgets in multiply-adds: masks cost no more, and one more unit would exceed them."""

from __future__ import annotations

import heapq
from dataclasses import replace

import numpy as np
import pytest
import torch
from channel_networks import IMAGE, Enlarging, Joined, Residual, Separable, Summed, built
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gaprune import InputOptions
from gaprune.config import make_settings
from gaprune.errors import InputError
from gaprune.evolution.genome import Genes, rank, seed_genes, to_float16
from gaprune.evolution.operators import CROSSOVERS, MUTATIONS
from gaprune.masks.budget import keep_total, uniform_counts
from gaprune.masks.mac_budget import Factor, MacCost, MacTerm
from gaprune.masks.supermask import Layout, global_mask, layer_counts
from gaprune.models.channel_removal import remove_channels
from gaprune.models.mac_cost import kept_macs
from gaprune.models.macs import macs_by_weight, macs_per_input
from gaprune.models.patterns import check_pattern, searched_layout, silent_channels, units_of
from gaprune.models.target import Target, target_from_module

NETWORKS = (Separable, Residual, Joined, Summed, Enlarging)
PATTERNS = ("unstructured", "4x1", "channel")


def target_of(kind: type[nn.Module] = Separable) -> Target:
    """Return a small network as a target."""
    return target_from_module(built(kind), inputs=InputOptions(shape=IMAGE, range=(0, 1)))


def layout_of(
    target: Target, pattern: str = "channel", sparsity: float = 0.5, step: int = 1
) -> Layout:
    """Return the searched layout with its MAC cost."""
    stated = {"pattern": pattern, "budget": "macs", "sparsity": sparsity, "width_multiple": step}
    return searched_layout(target, make_settings(stated))


def is_maximal(layout: Layout, counts: list[int], keep: int) -> bool:
    """Check by hand that counts fit and one more step of any layer would not."""
    cost = layout.mac_cost
    assert cost is not None
    if cost.macs(counts) > keep:
        return False
    for layer, (count, size) in enumerate(zip(counts, layout.sizes, strict=True)):
        if count % cost.step and count != size:
            return False
        more = list(counts)
        more[layer] = min(size, count + cost.step)
        if count < size and cost.macs(more) <= keep:
            return False
    return True


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Draw layers of channels or of single weights, with their cost."""
    sizes = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=5)))
    layers = st.integers(0, len(sizes) - 1)
    side = st.builds(
        Factor,
        st.integers(0, 2),
        st.lists(st.tuples(layers, st.integers(1, 3)), max_size=2).map(tuple),
    )
    terms = tuple(draw(st.lists(st.builds(MacTerm, st.integers(1, 50), side, side), max_size=6)))
    fixed, step = draw(st.integers(0, 100)), draw(st.integers(1, 4))
    cost = MacCost(0, fixed, terms, sizes, step=step)
    cost = replace(cost, dense=cost.macs(sizes))
    return Layout(tuple(map(str, sizes)), tuple((size,) for size in sizes), mac_cost=cost)


def greedy(layout: Layout, scores: torch.Tensor, keep: int) -> list[int]:
    """Buy units in the order of their scores; skip layers whose next step exceeds the budget."""
    cost = layout.mac_cost
    assert cost is not None
    counts = [min(size, -(-low // cost.step) * cost.step)
              for low, size in zip(layout.min_counts, layout.sizes, strict=True)]  # fmt: skip
    parts = [sorted(scores[part].tolist(), reverse=True) for part in layout.slices]

    def after(layer: int) -> int:
        return min(layout.sizes[layer], counts[layer] + cost.step)

    def offer(layer: int) -> None:
        if counts[layer] < layout.sizes[layer]:
            heapq.heappush(waiting, (-parts[layer][after(layer) - 1], layer))

    waiting: list[tuple[float, int]] = []
    for layer in range(len(counts)):
        offer(layer)
    while waiting:
        _, layer = heapq.heappop(waiting)
        more = list(counts)
        more[layer] = after(layer)
        if cost.macs(more) <= keep:
            counts = more
            offer(layer)
    return counts


@settings(deadline=None, max_examples=40)
@given(layout=layouts(), part=st.floats(0, 1), seed=st.integers(0, 99), ties=st.booleans())
def test_a_global_mask_buys_units_in_the_order_of_their_scores(
    layout: Layout, part: float, seed: int, ties: bool
) -> None:
    """As a greedy loop with a heap does."""
    scores = torch.randn(layout.total, generator=torch.Generator().manual_seed(seed))
    scores = scores.round() if ties else scores
    keep = int(layout.min_cost + part * (layout.dense_cost - layout.min_cost))
    mask = global_mask(scores, layout, keep)
    counts = layer_counts(mask, layout)
    assert is_maximal(layout, counts, keep)
    assert counts == greedy(layout, scores, keep)
    assert all(n >= low for n, low in zip(counts, layout.min_counts, strict=True))


@settings(deadline=None, max_examples=40)
@given(layout=layouts(), part=st.floats(0, 1), seed=st.integers(0, 99), wanted=st.integers(1, 9))
def test_apportioned_and_transferred_counts_are_maximal(
    layout: Layout, part: float, seed: int, wanted: int
) -> None:
    """For any shares, and for moves between layers."""
    cost = layout.mac_cost
    assert cost is not None
    generator = np.random.default_rng(seed)
    keep = int(layout.min_cost + part * (layout.dense_cost - layout.min_cost))
    shares = generator.random(len(layout.sizes)) * generator.integers(0, 20)
    counts = cost.apportion(shares, layout.min_counts, keep)
    assert is_maximal(layout, counts, keep)
    giver, taker = generator.integers(0, len(counts), 2).tolist()
    if giver != taker:
        moved = cost.transfer(counts, (giver, taker, wanted), layout.min_counts, keep)
        assert is_maximal(layout, moved, keep)
        assert moved == counts or moved[taker] > counts[taker]


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("step", [1, 2])
def test_the_cost_of_channels_is_that_of_the_smaller_network(
    kind: type[nn.Module], step: int
) -> None:
    """Counted by running it."""
    target = target_of(kind)
    layout = layout_of(target, step=step)
    stated = make_settings({"pattern": "channel", "budget": "macs", "sparsity": 0.5})
    units = units_of(target, stated)
    assert units is not None
    assert layout.mac_cost is not None
    assert layout.dense_cost == layout.mac_cost.macs(layout.sizes)
    for part in (0.3, 0.9):
        sparsity = round(part * (1 - layout.min_cost / layout.dense_cost), 6)
        scores = torch.rand(layout.total, generator=torch.Generator().manual_seed(3))
        keep = keep_total(layout, sparsity)
        mask = global_mask(scores, layout, keep)
        masks = target.layout.split(units.weight_mask(mask))
        removed = silent_channels(target, masks)
        compact = remove_channels(target.masked_copy(masks), target.example(), removed)
        macs = macs_per_input(compact, target.example())
        assert macs == layout.mac_cost.macs(layer_counts(mask, layout)) == kept_macs(target, masks)
        assert macs <= keep <= (1 - sparsity) * layout.dense_cost


@pytest.mark.parametrize("pattern", ["unstructured", "4x1"])
def test_the_cost_of_a_weight_is_the_number_of_output_positions(pattern: str) -> None:
    """Of its convolution; 1 for a linear layer."""
    target = target_of()
    layout = layout_of(target, pattern)
    total, macs = macs_by_weight(target.model, target.example(), target.weights)
    assert total == sum(macs.values()) == macs_per_input(target.model, target.example())
    positions = {"stem.weight": 16, "deep.weight": 16, "point.weight": 16, "head.weight": 1}
    assert {name: macs[name] // target.weights[name].numel() for name in macs} == positions
    keep = keep_total(layout, 0.6)
    mask = global_mask(torch.rand(layout.total), layout, keep)
    units = units_of(target, make_settings({"pattern": pattern, "sparsity": 0.6}))
    masks = target.layout.split(mask if units is None else units.weight_mask(mask))
    expected = sum(positions[name] * int(m.count_nonzero()) for name, m in masks.items())
    assert kept_macs(target, masks) == expected <= keep
    assert is_maximal(layout, layer_counts(mask, layout), keep)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("scope", ["allocated", "global", "layer"])
def test_operators_preserve_the_budget(pattern: str, scope: str) -> None:
    """Every mutation and crossover, three times in a row."""
    target = target_of()
    layout = layout_of(target, pattern)
    keep = keep_total(layout, 0.5)
    uniform = uniform_counts(layout, 0.5) if scope == "layer" else None
    generator = torch.Generator().manual_seed(1)
    parents = [
        seed_genes(torch.rand(layout.total, generator=generator), layout, keep, scope, uniform)
        for _ in range(2)
    ]
    for name in [*CROSSOVERS, *MUTATIONS] * 3:
        if name in CROSSOVERS:
            parents = list(CROSSOVERS[name](parents[0], parents[1], layout, generator))
        else:
            parents[0] = MUTATIONS[name](parents[0], layout, generator)
        for genes in parents:
            counts = layer_counts(genes.decode(layout), layout)
            assert is_maximal(layout, counts, keep), name
            assert genes.counts is None or list(genes.counts) == counts


@pytest.mark.parametrize("counted", [True, False])
def test_half_precision_scores_decode_to_the_same_mask(counted: bool) -> None:
    """Also where cheap units stay and better but expensive ones go."""
    layout = layout_of(target_of(), "unstructured")
    keep = keep_total(layout, 0.5)
    ranked = rank(torch.rand(layout.total, generator=torch.Generator().manual_seed(5)))
    counts = tuple(layer_counts(global_mask(ranked, layout, keep), layout)) if counted else None
    genes = Genes(ranked, counts, keep)
    assert torch.equal(to_float16(genes, layout).decode(layout), genes.decode(layout))


def test_an_error_names_the_highest_sparsity() -> None:
    """Every layer keeps at least one channel."""
    layout = layout_of(target_of())
    with pytest.raises(InputError, match=r"sparsity: 0\.999 .* 3,384 .* 451; .* 0\.866725$"):
        keep_total(layout, 0.999)
    assert keep_total(layout, 0.866725) >= layout.min_cost


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"budget": "flops"}, "budget"),
        ({"budget": "macs", "pattern": "2:4"}, "^budget: .*'2:4'"),
        ({"budget": "latency"}, "^budget: latency"),
        ({"budget": "macs", "budget_macs": 9}, "^budget_macs: .*budget=.latency."),
        ({"width_multiple": 8}, "^width_multiple: "),
        ({"budget": "latency", "pattern": "channel", "max_drop": 0.1}, "^max_drop: "),
        ({"budget": "latency", "pattern": "channel", "pareto": True}, "^pareto: "),
    ],
)
def test_contradicting_options_are_refused(stated: dict[str, object], message: str) -> None:
    """The error names the option."""
    with pytest.raises(InputError, match=message):
        check_pattern(make_settings({"sparsity": 0.5, **stated}))


def test_a_network_without_counted_macs_is_refused() -> None:
    """Its weights cost nothing."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return (inputs[:, None] * self.layer.weight).sum(2)

    target = target_from_module(Scaled().eval(), inputs=InputOptions(range=(0, 1)))
    with pytest.raises(InputError, match=r"^budget: "):
        layout_of(target, "unstructured")
