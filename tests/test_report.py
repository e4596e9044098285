"""Reports of sparsity against plain counting."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from search_cases import seeded, tiny_model
from torch import Tensor, nn
from torch.nn.utils import prune

from gaprune.comparison.methods.sparsity_report import report_of_masks, report_of_module
from gaprune.errors import InputError
from gaprune.masks.supermask import attach, bake

WEIGHTS = ("0.weight", "2.weight", "4.weight")


def random_masks(density: float = 0.4) -> dict[str, Tensor]:
    """Return masks of the tiny model."""
    shapes = {name: tiny_model().get_parameter(name).shape for name in WEIGHTS}
    return {n: torch.rand(s, generator=seeded(4)) < density for n, s in shapes.items()}


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=4))
def test_masks_are_counted_layer_by_layer_and_in_all(layers: list[list[bool]]) -> None:
    """Totals, kept weights and the fraction that is gone."""
    masks = {f"layer{i}": torch.tensor(layer) for i, layer in enumerate(layers)}
    report = report_of_masks(masks)
    every = [entry for layer in layers for entry in layer]
    assert (report.total, report.kept) == (len(every), sum(every))
    assert report.sparsity == pytest.approx(1 - sum(every) / len(every))
    assert report.rows() == [
        {
            "name": f"layer{i}",
            "total": len(layer),
            "kept": sum(layer),
            "sparsity": pytest.approx(layer.count(False) / len(layer)),
        }
        for i, layer in enumerate(layers)
    ]


def test_nothing_is_not_sparse() -> None:
    """No layers, or a layer without weights, give 0 and no division."""
    assert report_of_masks({}).sparsity == 0
    assert report_of_masks({"a": torch.ones(0, dtype=torch.bool)}).rows()[0]["sparsity"] == 0


def test_a_network_counts_as_its_masks_however_they_are_put_on_it() -> None:
    """Baked, attached, or by torch.nn.utils.prune."""
    masks, dense = random_masks(), tiny_model()
    expected = report_of_masks(masks)
    assert expected.kept not in (0, expected.total)
    attached = attach(copy.deepcopy(dense), masks)
    by_torch = copy.deepcopy(dense)
    for name, mask in masks.items():
        prune.custom_from_mask(by_torch.get_submodule(name.split(".")[0]), "weight", mask)
    for model in (attached, by_torch):
        assert report_of_module(model) == expected
    assert report_of_module(bake(attached)) == expected
    assert report_of_module(dense).sparsity == 0


def test_named_parameters_are_counted_in_their_order() -> None:
    """Biases too; other names are refused."""
    model = tiny_model()
    model.get_parameter("0.bias")[:5] = 0
    report = report_of_module(model, ["0.bias", "0.weight"])
    assert [(layer.name, layer.total, layer.kept) for layer in report.layers] == [
        ("0.bias", 12, 7),
        ("0.weight", 72, 72),
    ]
    for name in ("9.weight", "1.weight", "0.in_features"):
        with pytest.raises(InputError, match=f"names: '{name}' is no parameter .* has 0.weight"):
            report_of_module(model, [name])


def test_a_tied_weight_counts_once() -> None:
    """Under its first name, plain and with masks on it."""
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    assert [layer.name for layer in report_of_module(model).layers] == ["0.weight"]
    attach(model, {"0.weight": torch.eye(3, dtype=torch.bool)})
    assert [(layer.name, layer.kept) for layer in report_of_module(model).layers] == [
        ("0.weight", 3)
    ]


def test_attention_is_counted_by_its_projections() -> None:
    """Packed inputs and the output's own layer."""
    model = nn.MultiheadAttention(4, 2)
    names = [layer.name for layer in report_of_module(model).layers]
    assert names == ["in_proj_weight", "out_proj.weight"]
