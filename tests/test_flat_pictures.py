"""Networks that take the pixels of pictures as vectors are shown pictures, flattened."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import gaprune
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import target_from_module
from gaprune.runs.warnings import network_warnings


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))


def test_pictures_are_flattened() -> None:
    """The result is that of the same network behind `nn.Flatten`, under the network's own names."""
    options = InputOptions(shape=(1, 8, 8), range=(0, 1))
    few: dict[str, Any] = {"sparsity": 0.5, "calibration_count": 32, "validation_count": 32}
    few["method"] = "wanda"
    net = _net()
    test = torch.rand(5, 64), torch.zeros(5, dtype=torch.long)
    vectors = gaprune.prune(net, inputs=options, test=test, **few)
    assert vectors.accuracy is not None
    pictures = gaprune.prune(nn.Sequential(nn.Flatten(), *net), inputs=options, **few)
    assert vectors.target.inputs.kind == "image"
    assert list(vectors.masks) == ["0.weight", "2.weight"]
    assert all(map(torch.equal, vectors.masks.values(), pictures.masks.values()))
    assert vectors.validation_agreement == pictures.validation_agreement
    pruned = vectors.pruned_model()
    assert pruned(torch.rand(2, 64)).shape == (2, 3)
    assert not pruned._forward_pre_hooks


@pytest.mark.parametrize(
    ("size", "shapes"), [(64, ["1,8,8"]), (192, ["3,8,8"]), (36, []), (65, [])]
)
def test_vectors_that_may_be_pictures(size: int, shapes: list[str]) -> None:
    """The run suggests the shape of square pictures, unless it is stated."""
    target = target_from_module(nn.Linear(size, 3), inputs=InputOptions(range=(0, 1)))
    texts = list(network_warnings(target))
    assert len(texts) == len(shapes)
    assert all(shape in text for shape, text in zip(shapes, texts, strict=True))
