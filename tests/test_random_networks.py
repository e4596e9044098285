"""Budgets are exact on networks of any shape, for one-shot masks and for a search."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gaprune import InputOptions, prune

WIDTHS = st.lists(st.integers(3, 17), min_size=2, max_size=4)
SMALL: dict[str, Any] = {"calibration_count": 16, "validation_count": 16}
METHODS: list[dict[str, Any]] = [
    {"method": "magnitude"},
    {"method": "lamp"},
    {"preset": "black-box", "generations": 1, "population": 2, "offspring": 2},
]


@settings(max_examples=8)
@given(WIDTHS, st.integers(100, 900), st.booleans(), st.sampled_from(METHODS), st.integers(0, 9))
def test_a_random_network_keeps_exactly_what_was_asked_for(
    widths: list[int], permille: int, bias: bool, method: dict[str, Any], seed: int
) -> None:
    """The masks and the pruned copy have as many weights as the budget, rounded half up."""
    torch.manual_seed(seed)
    layers = [nn.Linear(*pair, bias=bias) for pair in pairwise(widths)]
    model = nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])
    options = {**SMALL, **method, "seed": seed}
    result = prune(model, sparsity=permille / 1000, inputs=InputOptions(range=(0, 1)), **options)
    total = sum(layer.weight.numel() for layer in layers)
    keep = (total * (1000 - permille) + 500) // 1000
    assert set(result.masks) == {f"{2 * number}.weight" for number in range(len(layers))}
    assert sum(int(mask.count_nonzero()) for mask in result.masks.values()) == keep
    pruned = result.pruned_model().state_dict()
    for name, mask in result.masks.items():
        assert torch.equal(pruned[name], model.state_dict()[name] * mask)
