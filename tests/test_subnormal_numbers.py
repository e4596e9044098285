"""Subnormal weights: recognised by their bits, computed with as zeros, stored as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_cases import TINY
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import load_file
from torch import nn

import gaprune
from gaprune.errors import GapruneWarning, InputError
from gaprune.exports.measure import measure
from gaprune.models.forward import standard_torch
from gaprune.models.subnormal_numbers import (
    count_subnormal,
    is_subnormal,
    subnormals_as_zero,
    with_subnormals_zeroed,
)
from gaprune.models.zoo import ZOO, load_zoo_network

SMALL = 1e-40


def flushes() -> bool:
    """Whether this thread computes with subnormal numbers as zeros."""
    return not bool(torch.tensor([SMALL]).mul(2.0).view(torch.int32).any())


@given(
    arrays.arrays(np.float32, arrays.array_shapes(min_dims=0), elements=st.floats(width=32)),
    st.booleans(),
)
def test_they_are_recognised_whatever_the_processor_does(values: Any, flush: bool) -> None:  # noqa: ANN401
    """By NumPy's limits, computed where nothing is flushed; zeroing keeps all other bits."""
    tiny = np.finfo(np.float32).tiny
    expected = (np.abs(values) < tiny) & (values != 0)
    tensor = torch.from_numpy(values.copy())
    torch.set_flush_denormal(flush)
    try:
        recognised, zeroed = is_subnormal(tensor), with_subnormals_zeroed(tensor)
    finally:
        torch.set_flush_denormal(False)
    assert np.array_equal(recognised.numpy(), expected)
    assert zeroed.numpy().tobytes() == np.where(expected, np.float32(0), values).tobytes()
    assert not count_subnormal([zeroed])


@pytest.mark.parametrize("before", [False, True])
def test_the_setting_of_the_caller_returns(before: bool) -> None:
    """Inside entry points they count as zeros; afterwards as before, also after errors."""
    torch.set_flush_denormal(before)
    try:
        with pytest.raises(AssertionError), standard_torch(), subnormals_as_zero():
            assert not flushes()
        assert flushes() is before
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_holds_none(name: str) -> None:
    """Its networks are as fast as their sizes say."""
    assert not count_subnormal(load_zoo_network(name).parameters())


def test_files_keep_them_unless_asked(tmp_path: Path) -> None:
    """A run warns, its file has the bits of the checkpoint, `measure` counts them."""
    torch.manual_seed(0)
    first, last = nn.Linear(6, 8), nn.Linear(8, 3)
    net = nn.Sequential(first, nn.ReLU(), last)
    with torch.no_grad():
        last.bias[:2] = torch.tensor([SMALL, -SMALL])
    inputs = gaprune.InputOptions(range=(0, 1))
    with pytest.warns(GapruneWarning, match=r"flush_subnormals"):
        result = gaprune.prune(
            net, sparsity=0.5, inputs=inputs, out=tmp_path / "run", progress=False, **TINY
        )
    file = tmp_path / "run" / "pruned.safetensors"
    stored = load_file(file)["2.bias"]
    assert torch.equal(stored.view(torch.int32), last.bias.detach().view(torch.int32))
    (measured,) = measure(file, target=net, runtimes=["torch"], batches=[1])
    weights = sum(layer.numel() for layer in (first.weight, last.weight))
    assert measured.subnormals == 2
    assert measured.nonzeros == weights // 2 + first.bias.numel() + last.bias.numel()
    written = gaprune.export(result, "dense", tmp_path / "dense", flush_subnormals=True)
    exported = load_file(written.file)
    assert exported["2.bias"].tolist() == [0.0, 0.0, stored[2].item()]
    assert torch.equal(exported["0.weight"], load_file(file)["0.weight"])
    with pytest.raises(InputError, match=r"flush_subnormals: masks"):
        gaprune.export(result, "masks", tmp_path / "masks", flush_subnormals=True)
