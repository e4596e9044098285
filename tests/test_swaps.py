"""Swaps: the refinement of masks against brute force on real inputs, and the criterion."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from criterion_networks import CASES, VECTOR, network_of, seeded
from torch import Tensor, nn

from gaprune.criteria import CRITERIA, row_swaps, score, score_with
from gaprune.criteria.layer_inputs import WeightShape
from gaprune.criteria.row_swaps import refine_mask
from gaprune.criteria.swaps import one_shot_mask
from gaprune.masks.n_of_m import NOfM
from gaprune.models.network import DenseNetwork

BASES = ("lamp", "lamp-wanda-rows")
ROWS, SIZE = 5, 12
PLAIN = WeightShape(1, 1, SIZE, 1, SIZE)


def columns(size: int = SIZE, count: int = 60) -> Tensor:
    """Return correlated inputs `[count, size]`."""
    generator = seeded(4)
    mixing = torch.randn(size, size, generator=generator).double()
    return torch.randn(count, size, generator=generator).double() @ mixing + 0.3


def random_case(keep: int = 5) -> tuple[Tensor, Tensor]:
    """Return weights and a random mask `[ROWS, SIZE]` with `keep` weights in every row."""
    weights = torch.randn(ROWS, SIZE, generator=seeded(1)).double()
    ranks = torch.rand(ROWS, SIZE, generator=seeded(2)).argsort(1)
    return weights, ranks < keep


def losses(weights: Tensor, mask: Tensor, inputs: Tensor, *, correlated: bool) -> Tensor:
    """Return what each row's outputs on real inputs lose, relative to their power: `[rows]`."""
    dense, pruned = inputs @ weights.T, inputs @ (weights * mask).T
    if correlated:
        pairs = zip(dense.T, pruned.T, strict=True)
        return 1 - torch.stack([torch.stack(pair).corrcoef()[0, 1] for pair in pairs])
    return (dense - pruned).square().sum(0) / dense.square().sum(0)


def gram_of(inputs: Tensor, *, correlated: bool) -> Tensor:
    """Return the matrix that belongs to an objective, `[1, 1, size, size]`."""
    matrix = inputs.T.cov(correction=0) if correlated else inputs.T @ inputs / len(inputs)
    return matrix[None, None]


def best_swap(
    weights: Tensor, mask: Tensor, inputs: Tensor, groups: Tensor, *, correlated: bool
) -> float:
    """Return the lowest loss of one row `[1, size]` after any swap inside a group."""
    lowest = float("inf")
    for p, q in product(range(mask.shape[1]), repeat=2):
        if mask[0, p] and not mask[0, q] and any({p, q} <= set(g) for g in groups.tolist()):
            swapped = mask.clone()
            swapped[0, p], swapped[0, q] = False, True
            loss = float(losses(weights, swapped, inputs, correlated=correlated))
            lowest = min(lowest, loss)
    return lowest


OBJECTIVES = pytest.mark.parametrize("correlated", [False, True])
GROUPS = {"rows": torch.arange(SIZE)[None], "2:4": torch.arange(SIZE).view(3, 4)}


@OBJECTIVES
@pytest.mark.parametrize("kind", GROUPS)
def test_no_swap_improves_a_refined_mask(kind: str, correlated: bool) -> None:
    """Every row is at least as good on real inputs, keeps its counts, and no swap is better."""
    weights, mask = random_case()
    groups = GROUPS[kind]
    if kind == "2:4":
        mask = (torch.rand(ROWS, 3, 4, generator=seeded(2)).argsort(2) < 2).flatten(1)
    inputs = columns()
    refined = refine_mask(
        weights,
        gram_of(inputs, correlated=correlated),
        mask,
        PLAIN,
        correlated=correlated,
        groups=groups if kind == "2:4" else None,
    )
    counts, expected = (x[:, groups].sum(2) for x in (refined, mask))
    assert torch.equal(counts, expected)
    before, after = (losses(weights, x, inputs, correlated=correlated) for x in (mask, refined))
    assert (after <= before + 1e-9).all()
    assert (after < 0.8 * before).any()
    for row in range(ROWS):
        part = slice(row, row + 1)
        other = best_swap(weights[part], refined[part], inputs, groups, correlated=correlated)
        assert other > float(after[row]) - 1e-5


@OBJECTIVES
def test_every_single_swap_is_the_best_one(
    correlated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One round of one step makes the swap that an exhaustive search finds, in every row."""
    monkeypatch.setattr(row_swaps, "STEPS", 1)
    weights, mask = random_case()
    inputs = columns()
    gram = gram_of(inputs, correlated=correlated)
    once = refine_mask(weights, gram, mask, PLAIN, correlated=correlated, rounds=1)
    after = losses(weights, once, inputs, correlated=correlated)
    for row in range(ROWS):
        part = slice(row, row + 1)
        expected = best_swap(
            weights[part], mask[part], inputs, GROUPS["rows"], correlated=correlated
        )
        assert float(after[row]) == pytest.approx(expected, rel=1e-9)


def test_a_short_list_of_candidates_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few candidates, rows in small parts: the error falls nearly as far, the counts stay."""
    inputs = columns(40, 200)
    weights = torch.randn(30, 40, generator=seeded(1)).double()
    mask = torch.rand(30, 40, generator=seeded(2)).argsort(1) < 15
    gram, shape = gram_of(inputs, correlated=False), WeightShape(1, 1, 40, 1, 40)
    whole = refine_mask(weights, gram, mask, shape)
    assert torch.equal(whole, refine_mask(weights, gram, mask, shape))
    monkeypatch.setattr(row_swaps, "CANDIDATES", 4)
    monkeypatch.setattr(row_swaps, "ENTRIES", 100)
    few = refine_mask(weights, gram, mask, shape)
    assert torch.equal(few.sum(1), mask.sum(1))
    before, all_pairs, short = (
        float(losses(weights, x, inputs, correlated=False).mean()) for x in (mask, whole, few)
    )
    assert short < all_pairs + 0.1 * (before - all_pairs)


def test_rows_use_the_matrix_of_their_group_and_block() -> None:
    """Grouped layers and blocks of wide ones are refined as separate matrices would be."""
    weights, mask = torch.randn(4, 10, generator=seeded()).double(), torch.zeros(4, 10).bool()
    mask[:, ::2] = True
    factors = torch.randn(2, 3, 4, 7, generator=seeded(2)).double()
    gram = factors @ factors.mT
    refined = refine_mask(weights, gram, mask, WeightShape(3, 2, 10, 3, 4))
    for group in range(2):
        rows = slice(2 * group, 2 * group + 2)
        whole = torch.block_diag(*gram[group])[:10, :10][None, None]
        expected = refine_mask(weights[rows], whole, mask[rows], WeightShape(1, 1, 10, 1, 10))
        assert torch.equal(refined[rows], expected)
    assert not torch.equal(refined, mask)


def test_rows_without_a_choice_stay() -> None:
    """Full rows, empty rows and rows of zeros cannot improve."""
    weights, mask = random_case()
    mask[0], mask[1] = True, False
    weights[2] = 0
    inputs = columns()
    for correlated in (False, True):
        gram = gram_of(inputs, correlated=correlated)
        refined = refine_mask(weights, gram, mask, PLAIN, correlated=correlated)
        assert torch.equal(refined[:3], mask[:3])


@pytest.mark.parametrize("case", CASES)
def test_scores_decode_to_the_same_counts(case: str) -> None:
    """In every layer swaps keep as many weights as their bases do."""
    network, calibration = CASES[case][0](), CASES[case][1]()
    layout = network.layout
    masks = [
        layout.split(one_shot_mask(score(name, network, calibration, seeded(3), 0.5), layout, 0.5))
        for name in (*BASES, "swaps", "correlation-swaps")
    ]
    for parts in zip(*(mask.values() for mask in masks), strict=True):
        assert len({int(part.sum()) for part in parts}) == 1
    again = score("swaps", network, calibration, seeded(9), 0.5)
    assert torch.equal(again, score("swaps", network, calibration, seeded(9), 0.5))


class Nested(nn.Module):
    """Two linear layers whose inputs are correlated."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.first(inputs).relu())
        return outputs


def layer_errors(network: DenseNetwork, mask: Tensor, calibration: Tensor) -> Tensor:
    """Return the squared error of each layer's outputs on dense inputs, relative to their power."""
    model = network.model
    assert isinstance(model, Nested)
    inputs = {"first.weight": calibration, "last.weight": model.first(calibration).relu()}
    masks = network.layout.split(mask)
    return torch.stack(
        [
            losses(weight, masks[name], inputs[name], correlated=False).mean()
            for name, weight in network.weights.items()
        ]
    )


def test_the_criterion_lowers_the_error_of_every_layer() -> None:
    """The mask at the density that the criterion was told has less error than its bases."""
    network, calibration = network_of(Nested, VECTOR), columns(4, 300).float()
    errors = {}
    for name in (*BASES, "swaps"):
        scores = score(name, network, calibration, seeded(3), 0.5)
        mask = one_shot_mask(scores, network.layout, 0.5)
        assert int(mask.sum()) == round(network.layout.total / 2)
        errors[name] = layer_errors(network, mask, calibration)
    *bases, refined = errors.values()
    assert (refined <= torch.stack(bases).amax(0) + 1e-6).all()
    assert all(refined.sum() < base.sum() for base in bases)


def test_a_pattern_is_kept() -> None:
    """With N:M groups in the layout, every group of the refined mask keeps N of M."""
    network, calibration = network_of(Nested, VECTOR), columns(4, 300).float()
    layout = replace(network.layout, n_of_m=NOfM(2, 4, (1, 1)))
    network = replace(network, layout=layout)
    errors = {}
    for name in (*BASES, "swaps"):
        mask = one_shot_mask(score(name, network, calibration, seeded(3), 0.5), layout, 0.5)
        assert layout.satisfies_pattern(mask)
        errors[name] = layer_errors(network, mask, calibration)
    *bases, refined = errors.values()
    assert all(refined.sum() < base.sum() for base in bases)


def test_a_repaired_network_keeps_the_correlation() -> None:
    """For a network that is repaired, `swaps` returns a mask with more correlation."""
    network, calibration = network_of(Nested, VECTOR), columns(4, 300).float()
    model = network.model
    assert isinstance(model, Nested)
    inputs, weights = model.first(calibration).relu(), network.weights["last.weight"]
    lost = []
    for criterion in (CRITERIA["swaps"].repairing, CRITERIA["swaps"], CRITERIA["lamp"]):
        scores = score_with(criterion, network, calibration, seeded(3), 0.5)
        mask = network.layout.split(one_shot_mask(scores, network.layout, 0.5))["last.weight"]
        lost.append(float(losses(weights, mask, inputs, correlated=True).mean()))
    assert lost[0] <= min(lost[1:])
