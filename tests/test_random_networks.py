"""Budgets are exact on networks of any shape, for one-shot masks and for a search."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gaprune import InputOptions, prune

WIDTHS = st.lists(st.integers(3, 17), min_size=2, max_size=4)
METHODS: list[dict[str, Any]] = [
    {"method": "magnitude"},
    {"method": "lamp"},
    {"preset": "black-box", "generations": 1, "population": 2, "offspring": 2},
]


@settings(max_examples=12)
@given(WIDTHS, st.integers(100, 900), st.booleans(), st.sampled_from(METHODS), st.integers(0, 9))
def test_a_random_network_keeps_exactly_what_was_asked_for(
    widths: list[int], permille: int, bias: bool, method: dict[str, Any], seed: int
) -> None:
    """The masks and the pruned copy have as many weights as the budget, rounded half up."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for width, following in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(width, following, bias=bias), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    count = {"calibration_count": 16, "validation_count": 16}
    result = prune(
        model,
        sparsity=permille / 1000,
        inputs=InputOptions(range=(0, 1)),
        seed=seed,
        **count,
        **method,
    )
    weights = {f"{2 * i}.weight": layer for i, layer in enumerate(layers[::2])}
    total = sum(layer.weight.numel() for layer in weights.values())  # type: ignore[union-attr, operator]
    keep = (total * (1000 - permille) + 500) // 1000
    assert set(result.masks) == set(weights)
    assert sum(int(mask.count_nonzero()) for mask in result.masks.values()) == keep
    pruned = result.pruned_model().state_dict()
    for name, mask in result.masks.items():
        assert torch.equal(pruned[name], model.state_dict()[name] * mask)
