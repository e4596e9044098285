"""What a caller has set in torch changes no result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import gaprune
from gaprune.models.input_spec import InputOptions


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set another default dtype."""
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "device": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_caller_change_nothing(name: str) -> None:
    """Default dtype and device, autocast and gradient modes: same masks, and they stay set."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    few: dict[str, Any] = {"sparsity": 0.5, "calibration_count": 16, "validation_count": 16}
    few |= {"generations": 1, "steps": 2, "initial_criteria": ["magnitude", "wanda"]}
    inputs = InputOptions(range=(0, 1))
    usual = gaprune.prune(net, inputs=inputs, **few)
    with SETTINGS[name]():
        before = torch.get_default_dtype(), torch.get_default_device()
        masks = gaprune.prune(net, inputs=inputs, **few).masks
        assert (torch.get_default_dtype(), torch.get_default_device()) == before
    assert all(torch.equal(masks[key], usual.masks[key]) for key in masks)
