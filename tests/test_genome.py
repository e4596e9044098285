"""Genes: ranking, alignment, seeding at an exact budget, and the DEAP individual around them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from search_cases import layout_of, layouts_with_counts, score_vectors, seeded

from gaprune.choices import SCOPES
from gaprune.evolution.genome import Genes, Individual, align, mask_key, rank, seed_genes
from gaprune.masks.supermask import (
    Layout,
    global_mask,
    layer_counts,
    layered_mask,
    pack,
    top_k_mask,
)

LayoutCounts = tuple[Layout, tuple[int, ...]]


@given(st.integers(1, 30).flatmap(score_vectors))
def test_ranks_are_the_places_of_a_sorted_list(scores: torch.Tensor) -> None:
    """The best of n scores gets (n − 1)/n, the worst 0; of equal ones the first is better."""
    values = scores.tolist()
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    expected = torch.empty(len(values))
    for place, index in enumerate(order):
        expected[index] = (len(values) - 1 - place) / len(values)
    assert torch.equal(rank(scores), expected)
    assert torch.equal(rank(scores.double()), expected)


def test_ranks_have_the_shape_of_the_scores() -> None:
    """A matrix of scores is ranked as a whole."""
    assert rank(torch.tensor([[3.0, 1.0], [2.0, 4.0]])).tolist() == [[0.5, 0.0], [0.25, 0.75]]


@given(layouts_with_counts(), st.data())
def test_alignment_keeps_the_mask_and_puts_every_cut_at_zero(
    case: LayoutCounts, data: st.DataObject
) -> None:
    """Aligned scores are positive where kept and not elsewhere: one threshold fits all layers."""
    layout, counts = case
    scores = data.draw(score_vectors(layout.total))
    genes = Genes(scores, counts, sum(counts), absolute=data.draw(st.booleans()))
    strength = scores.abs() if genes.absolute else scores
    mask, before = layered_mask(strength, layout, counts), scores.clone()

    aligned = align(genes, layout)

    assert torch.equal(aligned.scores > 0, mask)
    assert torch.equal(top_k_mask(aligned.scores, sum(counts)), mask)
    assert torch.equal(aligned.decode(layout), mask)
    assert torch.equal(scores, before)


@given(layouts_with_counts(), st.data())
def test_finer_ranks_are_cut_before_they_are_rounded(
    case: LayoutCounts, data: st.DataObject
) -> None:
    """Ranks that float32 cannot tell apart give float32 scores, and the mask of the finer ones."""
    layout, counts = case
    scores = 1 - data.draw(score_vectors(layout.total)).double() * 2.0**-50
    assert len(scores.float().unique()) == 1
    aligned = align(Genes(scores, counts, sum(counts)), layout)
    assert aligned.scores.dtype == torch.float32
    assert torch.equal(aligned.decode(layout), layered_mask(scores, layout, counts))


def test_alignment_moves_every_score_of_a_layer_by_the_same_amount() -> None:
    """The distances inside a layer stay, and the cut lies in the middle of its gap."""
    layout = layout_of([3, 2])
    genes = Genes(torch.tensor([1.0, 4.0, 2.0, 10.0, 20.0]), (1, 1), 2)
    assert align(genes, layout).scores.tolist() == [-2.0, 1.0, -1.0, -5.0, 5.0]


def test_genes_of_one_ranking_are_aligned_already() -> None:
    """Without counts per layer there is one cut, which stays where it is."""
    genes = Genes(torch.tensor([1.0, 2.0]), None, 1)
    assert align(genes, layout_of([1, 1])) is genes


@given(layouts_with_counts(), st.sampled_from(sorted(SCOPES)), st.booleans(), st.data())
def test_seeds_express_the_mask_of_their_criterion_at_the_exact_budget(
    case: LayoutCounts, scope: str, given_counts: bool, data: st.DataObject
) -> None:
    """Ranked over all layers, or inside layers of given counts: the same mask as of the scores."""
    layout, counts = case
    scores, keep = data.draw(score_vectors(layout.total)), sum(counts)
    uniform = counts if given_counts or scope == "layer" else None

    genes = seed_genes(scores, layout, keep, scope, uniform)

    mask = genes.decode(layout)
    expected = layered_mask(scores, layout, uniform) if uniform else None
    assert torch.equal(mask, global_mask(rank(scores), layout, keep) if expected is None else mask)
    assert expected is None or torch.equal(mask, expected)
    assert int(mask.count_nonzero()) == genes.keep == keep
    assert genes.scores.dtype == torch.float32
    assert genes.fixed == (scope == "layer")
    assert genes.counts == (None if scope == "global" else tuple(layer_counts(mask, layout)))


def test_an_individual_expresses_its_mask_once() -> None:
    """Mask and key belong to the genes it was made with, and its fitness is open at first."""
    layout = layout_of([6, 4])
    genes = Genes(torch.rand(10, generator=seeded()), (2, 3), 5)
    one = Individual.from_genes(genes, layout, "test")
    assert torch.equal(one.mask, genes.decode(layout))
    assert one.key == mask_key(pack(one.mask))
    assert not one.fitness.valid
    one.fitness.values = (0.25,)
    assert one.search_fitness == 0.25


@pytest.mark.parametrize("absolute", [False, True])
def test_the_sign_of_a_score_counts_unless_sizes_are_ranked(absolute: bool) -> None:
    """The original idea ranks |score|; signed genes of the same strength give the same mask."""
    layout = layout_of([3])
    genes = Genes(torch.tensor([-3.0, 1.0, 2.0]), (1,), 1, absolute=absolute)
    assert genes.decode(layout).tolist() == ([True, False, False] if absolute else [0, 0, 1])
    assert torch.equal(genes.signed().decode(layout), genes.decode(layout))
