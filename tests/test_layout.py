"""A layout's own sums and rules, and which masks belong to it; found by changing supermask.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gaprune.errors import InputError
from gaprune.masks.n_of_m import NOfM
from gaprune.masks.supermask import Layout, check_masks, masked_weights

LAYOUT = Layout(("a", "b"), ((3, 4), (2, 2)))


def test_without_prices_budgets_count_weights() -> None:
    """All of them, and at least one of each layer or its floor."""
    assert (LAYOUT.total, LAYOUT.dense_cost, LAYOUT.min_cost) == (16, 16, 2)
    assert LAYOUT.with_floor(0.5).min_cost == 6 + 2


def test_any_mask_fits_where_there_is_no_quota() -> None:
    """With one, those fit that keep N of every M and all of layers that stay whole."""
    nothing, whole = torch.zeros(16, dtype=torch.bool), torch.ones(16, dtype=torch.bool)
    assert LAYOUT.satisfies_pattern(nothing)
    assert LAYOUT.satisfies_pattern(whole)
    layout = replace(LAYOUT, n_of_m=NOfM(2, 4, (1, None)))
    halves = torch.tensor([True, True, False, False] * 3 + [True] * 4)
    assert layout.satisfies_pattern(halves)
    assert not layout.satisfies_pattern(whole)
    assert not layout.satisfies_pattern(nothing)
    assert not layout.satisfies_pattern(halves.roll(1))


def test_flat_vectors_and_layers_are_the_same_numbers() -> None:
    """Split and joined they come back; a layer is a view of its part."""
    flat = torch.arange(16.0)
    layers = LAYOUT.split(flat)
    assert {name: list(one.shape) for name, one in layers.items()} == {"a": [3, 4], "b": [2, 2]}
    assert layers["b"].flatten().tolist() == [12, 13, 14, 15]
    assert torch.equal(LAYOUT.flatten(layers), flat)
    layers["a"][0, 0] = 9
    assert flat[0] == 9


def test_masks_belong_to_weights_by_name() -> None:
    """Some may be missing; one of another name is refused, and the names there are listed."""
    weights = {"a": torch.ones(3, 4), "b": torch.ones(2, 2)}
    check_masks({"a": torch.ones(3, 4, dtype=torch.bool)}, weights)
    with pytest.raises(InputError, match=r"masks: unknown name 'c'.*a, b"):
        check_masks({"c": torch.ones(3, 4, dtype=torch.bool)}, weights)
    with pytest.raises(InputError, match=r"masks\['b'\]: .*bool.*\(2, 2\)"):
        check_masks({"b": torch.ones(3, 4, dtype=torch.bool)}, weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("transposed", [False, True])
def test_kept_bits_stay_and_dropped_ones_are_plus_zero(
    dtype: torch.dtype, *, transposed: bool
) -> None:
    """Also of −0, NaN and infinity, and however the weight lies in memory."""
    odd = torch.tensor([[-0.0, torch.inf], [torch.nan, -1.5], [1e-7, -torch.inf]], dtype=dtype)
    weight = odd.t().contiguous().t() if transposed else odd
    mask = torch.tensor([[True, False], [True, True], [False, False]])
    found = masked_weights({"w": weight}, {"w": mask})["w"]
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    bits, wanted = found.contiguous().view(kind), odd.contiguous().view(kind)
    assert torch.equal(bits[mask], wanted[mask])
    assert not bits[~mask].any()
