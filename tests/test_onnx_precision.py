"""ONNX files: how far they may differ by rounding, and what is said if they cannot be written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gaprune
from gaprune.errors import GapruneError
from gaprune.models.forward import free_batch, relative_difference, rounding_tolerance
from gaprune.models.input_spec import InputOptions
from gaprune.models.onnx import export_reason

FEW: dict[str, Any] = {"sparsity": 0.5, "calibration_count": 16, "validation_count": 16}


class Star(nn.Linear):
    """Takes any number of inputs, and branches on values if it is told to."""

    branches = False

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.branches and inputs[0].sum() > 0:
            return -super().forward(inputs[0])
        return super().forward(inputs[0])


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 3))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "float16": lambda: _mlp().half(),
    "float64": lambda: _mlp().double(),
    "star": lambda: Star(6, 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_that_are_exported(name: str, tmp_path: Path) -> None:
    """Half and double precision, and a forward pass that takes `*inputs`."""
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    run = gaprune.prune(NETWORKS[name](), inputs=InputOptions((6,)), method="magnitude", **FEW)
    assert gaprune.export(run, "onnx", tmp_path / "o").file.is_file()


@pytest.mark.slow
def test_the_reason_is_one_line(tmp_path: Path) -> None:
    """Torch's own reason, without its page of advice and its colours."""
    pytest.importorskip("onnxscript")
    net = Star(6, 3)
    run = gaprune.prune(net, inputs=InputOptions((6,)), method="magnitude", **FEW)
    run.target.model.branches = True  # type: ignore[assignment]
    with pytest.raises(GapruneError, match="GuardOnDataDependent") as caught:
        gaprune.export(run, "onnx", tmp_path / "o")
    assert "\n" not in str(caught.value)


def test_reasons_without_advice() -> None:
    """The innermost cause is shown, its first line, without escape codes."""
    cause, page = ValueError("\x1b[31m\n the reason\x1b[0m \n details"), RuntimeError("## Next")
    page.__cause__ = cause
    assert export_reason(page) == "ValueError: the reason"
    assert export_reason(ValueError()) == "ValueError"


def test_shapes_of_any_signature() -> None:
    """The first of `*inputs` is free in its batch as one input is."""
    assert free_batch(Star(6, 3)) == (free_batch(_mlp()),)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_rounding_is_relative_to_outputs_and_dtype(dtype: torch.dtype) -> None:
    """Outputs of any size may differ by roundings; NaN is no small difference."""
    outputs = torch.tensor([1e-3, 2e-3], dtype=dtype)
    rounded = outputs * (1 + 2 * torch.finfo(dtype).eps)
    assert 0 < relative_difference(rounded, outputs) < rounding_tolerance(dtype)
    assert not relative_difference(outputs * torch.nan, outputs) <= rounding_tolerance(dtype)
