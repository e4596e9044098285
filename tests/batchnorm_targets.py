"""Small targets whose BatchNorm statistics are near those of a generator, or far from all."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gaprune.calibration.generators.procedural import GENERATORS
from gaprune.callbacks import Observer
from gaprune.masks.supermask import Layout
from gaprune.models.input_spec import InputOptions, InputSpec
from gaprune.models.network import DenseNetwork
from gaprune.models.target import Target, target_from_module


class Listener(Observer):
    """Records phases, progress and warnings."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.steps: list[tuple[str, float]] = []
        self.warnings: list[str] = []

    def phase(self, name: str, detail: str) -> None:
        """Record the detail."""
        self.phases.append(f"{name}: {detail}")

    def progress(self, what: str, done: float, total: float | None) -> None:
        """Record the steps."""
        self.steps.append((what, done))

    def warning(self, text: str) -> None:
        """Record the text."""
        self.warnings.append(text)


class Signals(nn.Module):
    """A convolution over a signal `[N, 2, 40]` with BatchNorm, three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(2, 6, 5), nn.BatchNorm1d(6, momentum=None)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.norm(self.conv(x)).relu().mean(2))
        return logits


def signal_target() -> Target:
    """Return a network trained on a constant hum, unlike any generator."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = Signals()
        hum = torch.sin(torch.arange(40) / 3 + 6 * torch.rand(256, 1, 1)).expand(-1, 2, -1)
        net.train()(hum)
    return target_from_module(net, inputs=InputOptions((2, 40), range=(-1, 1)))


def vector_net() -> nn.Sequential:
    """Return a network 6 → 12 → 4 with BatchNorm in its initial state."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        norm = nn.BatchNorm1d(12, momentum=None)
        return nn.Sequential(nn.Linear(6, 12), norm, nn.ReLU(), nn.Linear(12, 4))


def vector_target(near: bool) -> Target:
    """Return a network trained on generated vectors, or on a small cluster far from them."""
    net = vector_net()
    generator = torch.Generator().manual_seed(5)
    target = target_from_module(net, inputs=InputOptions(range=(0, 1)))
    data = GENERATORS["vector"]["uniform"](target.inputs, 2000, generator)
    if not near:
        centre = torch.tensor([0.9, 0.1, 0.9, 0.1, 0.9, 0.1])
        data = centre + 0.01 * torch.randn(2000, 6, generator=generator)
    net.train()(data)
    return target_from_module(net, inputs=InputOptions(range=(0, 1)))


def bare_network(model: nn.Module, spec: InputSpec) -> DenseNetwork:
    """Return a network with a dummy weight, for functions that only run its model on the CPU."""
    weights = {"weight": torch.zeros(1, 1)}
    return DenseNetwork(model, weights, Layout.of(weights), spec)
