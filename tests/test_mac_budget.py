"""Budgets in multiply-adds: what stays costs no more, and one more unit would cost too much."""

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
    """Return what a search has scores for, with its price."""
    stated = {"pattern": pattern, "budget": "macs", "sparsity": sparsity, "width_multiple": step}
    return searched_layout(target, make_settings(stated))


def spent(layout: Layout, counts: list[int], keep: int) -> bool:
    """Tell by hand whether counts fit and nothing more would."""
    price = layout.mac_cost
    assert price is not None
    if price.macs(counts) > keep:
        return False
    for place, (count, size) in enumerate(zip(counts, layout.sizes, strict=True)):
        if count % price.step and count != size:
            return False
        more = list(counts)
        more[place] = min(size, count + price.step)
        if count < size and price.macs(more) <= keep:
            return False
    return True


@st.composite
def prices(draw: st.DrawFn) -> Layout:
    """Draw layers that make and read each other's channels, or single weights, and their price."""
    sizes = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=5)))
    layers = st.integers(0, len(sizes) - 1)
    side = st.builds(
        Factor,
        st.integers(0, 2),
        st.lists(st.tuples(layers, st.integers(1, 3)), max_size=2).map(tuple),
    )
    terms = tuple(draw(st.lists(st.builds(MacTerm, st.integers(1, 50), side, side), max_size=6)))
    fixed, step = draw(st.integers(0, 100)), draw(st.integers(1, 4))
    price = MacCost(0, fixed, terms, sizes, step=step)
    price = replace(price, dense=price.macs(sizes))
    return Layout(tuple(map(str, sizes)), tuple((one,) for one in sizes), mac_cost=price)


def greedy(layout: Layout, scores: torch.Tensor, keep: int) -> list[int]:
    """Buy unit after unit, best first; a layer whose next step is too dear is closed."""
    price = layout.mac_cost
    assert price is not None
    counts = [min(size, -(-low // price.step) * price.step)
              for low, size in zip(layout.min_counts, layout.sizes, strict=True)]  # fmt: skip
    parts = [sorted(scores[part].tolist(), reverse=True) for part in layout.slices]

    def after(layer: int) -> int:
        return min(layout.sizes[layer], counts[layer] + price.step)

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
        if price.macs(more) <= keep:
            counts = more
            offer(layer)
    return counts


@settings(deadline=None, max_examples=60)
@given(layout=prices(), part=st.floats(0, 1), seed=st.integers(0, 99), ties=st.booleans())
def test_the_best_are_bought_as_far_as_the_budget_goes(
    layout: Layout, part: float, seed: int, ties: bool
) -> None:
    """As buying one after the other does; nothing more fits."""
    scores = torch.randn(layout.total, generator=torch.Generator().manual_seed(seed))
    scores = scores.round() if ties else scores
    keep = int(layout.min_cost + part * (layout.dense_cost - layout.min_cost))
    mask = global_mask(scores, layout, keep)
    counts = layer_counts(mask, layout)
    assert spent(layout, counts, keep)
    assert counts == greedy(layout, scores, keep)
    assert all(n >= low for n, low in zip(counts, layout.min_counts, strict=True))


@settings(deadline=None, max_examples=60)
@given(layout=prices(), part=st.floats(0, 1), seed=st.integers(0, 99), wanted=st.integers(1, 9))
def test_counts_stay_on_the_budget_wherever_they_move(
    layout: Layout, part: float, seed: int, wanted: int
) -> None:
    """Shares, and moves from layer to layer."""
    price = layout.mac_cost
    assert price is not None
    generator = np.random.default_rng(seed)
    keep = int(layout.min_cost + part * (layout.dense_cost - layout.min_cost))
    shares = generator.random(len(layout.sizes)) * generator.integers(0, 20)
    counts = price.apportion(shares, layout.min_counts, keep)
    assert spent(layout, counts, keep)
    giver, taker = generator.integers(0, len(counts), 2).tolist()
    if giver != taker:
        moved = price.transfer(counts, (giver, taker, wanted), layout.min_counts, keep)
        assert spent(layout, moved, keep)
        assert moved == counts or moved[taker] > counts[taker]


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("step", [1, 2])
def test_the_price_of_channels_is_what_the_smaller_network_takes(
    kind: type[nn.Module], step: int
) -> None:
    """Counted by running it, whatever makes and reads the channels."""
    target = target_of(kind)
    layout = layout_of(target, step=step)
    stated = make_settings({"pattern": "channel", "budget": "macs", "sparsity": 0.5})
    units = units_of(target, stated)
    assert units is not None
    assert layout.mac_cost is not None
    assert layout.dense_cost == layout.mac_cost.macs(layout.sizes)
    for part in (0.3, 0.6, 0.9):
        sparsity = round(part * (1 - layout.min_cost / layout.dense_cost), 6)
        scores = torch.rand(layout.total, generator=torch.Generator().manual_seed(3))
        keep = keep_total(layout, sparsity)
        mask = global_mask(scores, layout, keep)
        masks = target.layout.split(units.weight_mask(mask))
        gone = silent_channels(target, masks)
        compact = remove_channels(target.masked_copy(masks), target.example(), gone)
        found = macs_per_input(compact, target.example())
        assert found == layout.mac_cost.macs(layer_counts(mask, layout)) == kept_macs(target, masks)
        assert found <= keep <= (1 - sparsity) * layout.dense_cost


@pytest.mark.parametrize("pattern", ["unstructured", "4x1"])
def test_the_price_of_weights_is_their_layers_positions(pattern: str) -> None:
    """A weight of a convolution is multiplied once for every position of the output."""
    target = target_of()
    layout = layout_of(target, pattern)
    total, own = macs_by_weight(target.model, target.example(), target.weights)
    assert total == sum(own.values()) == macs_per_input(target.model, target.example())
    positions = {"stem.weight": 16, "deep.weight": 16, "point.weight": 16, "head.weight": 1}
    assert {name: own[name] // target.weights[name].numel() for name in own} == positions
    keep = keep_total(layout, 0.6)
    mask = global_mask(torch.rand(layout.total), layout, keep)
    units = units_of(target, make_settings({"pattern": pattern, "sparsity": 0.6}))
    masks = target.layout.split(mask if units is None else units.weight_mask(mask))
    real = sum(positions[name] * int(one.count_nonzero()) for name, one in masks.items())
    assert kept_macs(target, masks) == real <= keep
    assert spent(layout, layer_counts(mask, layout), keep)


def test_layers_narrowed_alike_spend_the_budget() -> None:
    """Each keeps about the same part."""
    layout = layout_of(target_of(lambda: Separable(16, 32)))  # type: ignore[arg-type]
    counts = uniform_counts(layout, 0.5)
    assert spent(layout, counts, keep_total(layout, 0.5))
    assert abs(counts[0] / 16 - counts[1] / 32) < 0.1


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("scope", ["allocated", "global", "layer"])
def test_operators_keep_the_budget(pattern: str, scope: str) -> None:
    """Every mutation and crossover, on children of children."""
    target = target_of()
    layout = layout_of(target, pattern)
    keep = keep_total(layout, 0.5)
    uniform = uniform_counts(layout, 0.5) if scope == "layer" else None
    generator = torch.Generator().manual_seed(1)
    parents = [
        seed_genes(torch.rand(layout.total, generator=generator), layout, keep, scope, uniform)
        for _ in range(2)
    ]
    for name, operator in [*CROSSOVERS.items(), *MUTATIONS.items()] * 3:
        if name in CROSSOVERS:
            parents = list(CROSSOVERS[name](parents[0], parents[1], layout, generator))
        else:
            parents[0] = MUTATIONS[name](parents[0], layout, generator)
        for one in parents:
            counts = layer_counts(one.decode(layout), layout)
            assert spent(layout, counts, keep), name
            assert one.counts is None or list(one.counts) == counts
        assert operator is not None


@pytest.mark.parametrize("counted", [True, False])
def test_half_precision_keeps_masks_of_a_price(counted: bool) -> None:
    """Also where cheap units stay that rank below dear ones that go."""
    layout = layout_of(target_of(), "unstructured")
    keep = keep_total(layout, 0.5)
    ranked = rank(torch.rand(layout.total, generator=torch.Generator().manual_seed(5)))
    counts = tuple(layer_counts(global_mask(ranked, layout, keep), layout)) if counted else None
    genes = Genes(ranked, counts, keep)
    assert torch.equal(to_float16(genes, layout).decode(layout), genes.decode(layout))


def test_scores_that_are_not_numbers_have_no_rank() -> None:
    """As without a price."""
    layout = layout_of(target_of())
    with pytest.raises(InputError, match="scores: 14 of 14 are NaN"):
        global_mask(torch.full((layout.total,), torch.nan), layout, layout.dense_cost)


def test_too_small_a_budget_says_what_is_possible() -> None:
    """One channel of every layer costs something."""
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
        ({"budget": "macs", "budget_macs": 9}, "^budget_macs: .*--budget latency"),
        ({"width_multiple": 8}, "^width_multiple: "),
        (
            {"budget": "latency", "pattern": "channel", "max_drop": 0.1},
            "^max_drop: ",
        ),
        ({"budget": "latency", "pattern": "channel", "pareto": True}, "^pareto: "),
    ],
)
def test_combinations_that_mean_nothing_are_refused(
    stated: dict[str, object], message: str
) -> None:
    """Before anything is computed."""
    with pytest.raises(InputError, match=message):
        check_pattern(make_settings({"sparsity": 0.5, **stated}))


def test_a_network_without_counted_work_is_refused() -> None:
    """Its weights cost nothing, so that no budget could be kept."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return (inputs[:, None] * self.layer.weight).sum(2)

    target = target_from_module(Scaled().eval(), inputs=InputOptions(range=(0, 1)))
    with pytest.raises(InputError, match="^budget: "):
        layout_of(target, "unstructured")
