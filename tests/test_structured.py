"""Whole channels by their norm, against torch.nn.utils.prune and plain counting."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from criterion_networks import Attention
from hypothesis import given
from hypothesis import strategies as st
from search_cases import seeded
from torch import Tensor, nn
from torch.nn.utils import prune

from gaprune.comparison.methods.structured import (
    output_dim,
    output_layer,
    slice_norms,
    structured_masks,
)
from gaprune.errors import InputError
from gaprune.masks.budget import keep_total
from gaprune.models.target import InputOptions, Target, target_from_module

NORMS = (1, 2, math.inf)


class Net(nn.Module):
    """Convolutions, transposed and grouped ones; the last layer to run is registered first."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 3)
        self.first = nn.Conv2d(2, 12, 3)
        self.up = nn.ConvTranspose2d(12, 10, 2, groups=2)
        self.down = nn.Conv2d(10, 16, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.up(self.first(images).relu()).relu()
        logits: Tensor = self.head(self.down(hidden).relu().flatten(1))
        return logits


def target_of(model: nn.Module, *shape: int, also: tuple[str, ...] = ()) -> Target:
    """Return a target of normal weights: no two norms are equal."""
    with torch.no_grad():
        generator = seeded()
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return target_from_module(model, inputs=InputOptions(shape=shape), prune_also=also)


TARGET = target_of(Net(), 2, 4, 4)
CHANNELS = {"first.weight": 0, "up.weight": 1, "down.weight": 0}


def channels_left(mask: Tensor, dim: int) -> int:
    """Count the channels that stay; a channel is whole or gone."""
    rows = mask.movedim(dim, 0).flatten(1)
    assert torch.equal(rows.all(1), rows.any(1))
    return int(rows.all(1).sum())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(3, 5), (4, 2, 3), (3, 2, 2, 5)])
def test_norms_are_those_of_every_slice(shape: tuple[int, ...], norm: float) -> None:
    """One by one, along each dimension from both ends."""
    weight = torch.randn(shape, generator=seeded())
    for dim in range(-len(shape), len(shape)):
        norms = slice_norms(weight, dim, norm)
        expected = [
            float(torch.linalg.vector_norm(weight.select(dim, i).double(), norm))
            for i in range(shape[dim])
        ]
        assert norms.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.85])
def test_masks_are_those_of_ln_structured_along_the_outputs(sparsity: float, norm: float) -> None:
    """Layer by layer, for the counts that the budget gives; the output layer stays whole."""
    masks = structured_masks(TARGET, sparsity, norm)
    model = copy.deepcopy(TARGET.model)
    for name, dim in CHANNELS.items():
        layer = model.get_submodule(name.removesuffix(".weight"))
        gone = TARGET.weights[name].shape[dim] - channels_left(masks[name], dim)
        prune.ln_structured(layer, "weight", amount=gone, n=norm, dim=dim)
        assert torch.equal(masks[name], layer.get_buffer("weight_mask").bool()), name
    assert masks["head.weight"].all()


@given(st.floats(0.01, 0.87))
def test_no_further_channel_fits_the_budget(sparsity: float) -> None:
    """Never more than the budget, and nothing left that another channel could use."""
    masks = structured_masks(TARGET, sparsity, 1)
    assert list(masks) == list(TARGET.weights)
    slack = keep_total(TARGET.layout, sparsity) - sum(int(m.sum()) for m in masks.values())
    assert slack >= 0
    for name, dim in CHANNELS.items():
        left, all_of_them = channels_left(masks[name], dim), masks[name].shape[dim]
        assert left >= 1
        assert left == all_of_them or slack < masks[name].numel() // all_of_them


@given(st.floats(0.05, 0.77))
def test_layers_lose_the_same_fraction(sparsity: float) -> None:
    """Where a channel costs the same everywhere, fractions differ by less than one channel."""
    widths = (8, 8, 8)
    layers = [nn.Linear(8, width) for width in widths]
    target = target_of(nn.Sequential(*layers, nn.Linear(8, 3)), 8)
    masks = structured_masks(target, sparsity, 2)
    left = [channels_left(masks[f"{i}.weight"], 0) for i in range(len(widths))]
    assert max(left) - min(left) <= 1


def test_the_message_of_an_impossible_sparsity_says_what_is_possible() -> None:
    """The number in it works; what is next to it in the budget does not."""
    with pytest.raises(InputError, match="whole channels reach at most") as caught:
        structured_masks(TARGET, 0.95, 1)
    found = re.search(r"reach at most ([\d.]+)", str(caught.value))
    assert found
    most = float(found[1])
    masks = structured_masks(TARGET, most, 1)
    assert [channels_left(masks[name], dim) for name, dim in CHANNELS.items()] == [1, 1, 1]
    with pytest.raises(InputError, match="reach at most"):
        structured_masks(TARGET, most + 1 / TARGET.layout.total, 1)


def test_biases_that_are_prunable_stay_whole() -> None:
    """Vectors have no channels; they count against the budget."""
    target = target_of(Net(), 2, 4, 4, also=("first.bias",))
    masks = structured_masks(target, 0.5, 1)
    assert masks["first.bias"].all()
    assert sum(int(m.sum()) for m in masks.values()) <= keep_total(target.layout, 0.5)


def test_the_output_layer_is_the_one_that_runs_last() -> None:
    """Not the one registered last; hooks are taken off again."""
    assert output_layer(TARGET) == "head.weight"
    assert not any(module._forward_hooks for module in TARGET.model.modules())
    tokens = target_from_module(Attention(), inputs=InputOptions(shape=(5,)))
    assert output_layer(tokens) == "head.weight"


def test_a_network_that_calls_no_layer_ends_with_its_last_weight() -> None:
    """Parameters may be used without their modules."""

    class Bare(Net):
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.linear(images.flatten(1), self.head.weight)

    target = target_from_module(Bare(), inputs=InputOptions(shape=(16,)))
    assert output_layer(target) == "down.weight"


def test_a_tied_output_layer_is_found_under_its_first_name() -> None:
    """Its weight is one, wherever it is used."""
    first, last = nn.Linear(4, 4), nn.Linear(4, 4)
    last.weight = first.weight
    target = target_of(nn.Sequential(first, nn.Linear(4, 4), last), 4)
    assert output_layer(target) == "0.weight"


def test_outputs_are_counted_along_dimension_1_of_transposed_convolutions() -> None:
    """And along 0 of all others."""
    assert {name: output_dim(TARGET.model, name) for name in CHANNELS} == CHANNELS


def test_what_cannot_be_is_refused() -> None:
    """Other norms and sparsities, and networks without a layer's weight."""
    with pytest.raises(InputError, match="norm: must be 1, 2 or inf, got 3"):
        structured_masks(TARGET, 0.5, 3)
    with pytest.raises(InputError, match="sparsity: must lie strictly between 0 and 1"):
        structured_masks(TARGET, 1.0, 1)
    with pytest.raises(InputError, match=r"dim: must be from -2 to 1 for .* \(3, 4\), got 2"):
        slice_norms(torch.ones(3, 4), 2, 1)
    with pytest.raises(InputError, match="dim: slices need two or more dimensions"):
        slice_norms(torch.ones(3), 0, 1)
    vectors = nn.Sequential(nn.LayerNorm(4))
    options = InputOptions(shape=(4,))
    target = target_from_module(vectors, inputs=options, prune_also=["0.weight"])
    with pytest.raises(InputError, match="model: has vectors only to prune"):
        structured_masks(target, 0.5, 1)
