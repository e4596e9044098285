"""Small networks that stand in for the real ones, importable where a process of a row starts."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.networks.real_network import RealNetwork
from benchmarks.networks.scoring import accuracy, outputs_of, same_class
from benchmarks.real.prune_and_score import Case
from gaprune.errors import GapruneError
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, target_from_module

HELD_OUT = 80
SETTINGS = {
    "calibration": ["procedural"],
    "population": 2,
    "offspring": 1,
    "generations": 1,
    "steps": 2,
    "batch": 8,
    "density_search": 0,
    "calibration_count": 64,
    "validation_count": 32,
}


def tiny_model() -> nn.Module:
    """Return a network 6 → 16 → 4 with BatchNorm and seeded weights, 160 of them prunable."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)
        )
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        model(torch.rand(256, 6))  # gives BatchNorm statistics
    return model.eval()


def held_out() -> tuple[Tensor, Tensor]:
    """Return inputs, and labels that the dense network misses in one of four."""
    inputs = torch.rand(HELD_OUT, 6, generator=torch.Generator().manual_seed(5))
    labels = outputs_of(tiny_model(), inputs).argmax(1)
    labels[: HELD_OUT // 4] = (labels[: HELD_OUT // 4] + 1) % 4
    return inputs, labels


def open_tiny(data: Path | None) -> RealNetwork:
    """Return the network; `data` is not needed."""
    inputs, labels = held_out()

    def load() -> Target:
        return target_from_module(tiny_model(), inputs=InputOptions(range=(0.0, 1.0)), name="tiny")

    return RealNetwork(
        name="tiny",
        load=load,
        outputs=lambda model: outputs_of(model, inputs),
        grade=lambda outputs: accuracy(outputs, labels),
        agreement=same_class,
        test_count=HELD_OUT,
        measure="top-1 on numbers",
    )


def open_nowhere(data: Path | None) -> RealNetwork:
    """Fail as a network whose package is missing."""
    raise GapruneError("nowhere: is not installed; pip install nowhere")


def open_deadly(data: Path | None) -> RealNetwork:
    """End the process, as a system without memory does."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def unrelated(data: Path | None) -> Tensor:
    """Return inputs of the network's shape."""
    return torch.rand(50, 6, generator=torch.Generator().manual_seed(9))


def no_proxy(data: Path | None) -> Tensor:
    """Fail as a proxy whose files are missing."""
    raise GapruneError("data: needs photographs")


TINY = Case(open_tiny, (0.5,), SETTINGS, unrelated)
CASES = {"tiny": TINY, "nowhere": Case(open_nowhere, (0.5, 0.7), SETTINGS, unrelated)}
