"""Cost of a forward pass: memory of activations, batch sizes that fit it, and MACs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from criterion_networks import CASES, network_of, seeded
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gaprune.criteria import batching, score
from gaprune.criteria.batching import MAX_BATCH, MEMORY, batch_size
from gaprune.models.input_spec import InputSpec
from gaprune.models.macs import activation_bytes, macs_per_input
from gaprune.models.target import load_target
from gaprune.models.zoo import ZOO, load_zoo_network


def test_the_activations_of_a_linear_network_are_its_inputs() -> None:
    """A frozen layer stores its tanh's output; a trainable one stores its inputs too."""
    model = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 5)).requires_grad_(False)
    example = torch.ones(1, 10)
    assert activation_bytes(model, example) == 4 * 20
    leaves = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    assert activation_bytes(model, example, leaves) == 4 * (10 + 20)
    assert not example.requires_grad


def test_token_ids_are_not_differentiated() -> None:
    """Integer ids take no gradients, but the activations behind them count."""
    network, ids = CASES["attention"][0](), CASES["attention"][1]()
    leaves = {name: p.detach().requires_grad_() for name, p in network.weights.items()}
    assert activation_bytes(network.model, ids[:1], leaves) > 5 * 8 * 4


def test_batches_follow_memory() -> None:
    """As many calibration inputs as fit, at least one and at most `MAX_BATCH`."""
    assert batch_size(1) == MAX_BATCH
    assert batch_size(int(MEMORY / 10)) == 10
    assert batch_size(int(MEMORY / 10), copies=3) == 3
    assert batch_size(int(MEMORY * 10)) == 1


@pytest.mark.parametrize("name", ["mnist-mlp", "mnist-cnn", "lenet"])
def test_zoo_networks_fit_whole_batches(name: str) -> None:
    """Scores of zoo networks do not depend on the memory limit."""
    model = load_zoo_network(name)
    leaves = {key: p.detach().requires_grad_() for key, p in model.named_parameters()}
    assert batch_size(activation_bytes(model, torch.zeros(1, 1, 28, 28), leaves), 3) == MAX_BATCH


@pytest.mark.parametrize("name", ["snip", "grasp", "taylor"])
def test_small_batches_give_the_same_scores(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over small batches equal sums over one batch, up to rounding."""
    network = network_of(lambda: nn.Linear(6, 3), InputSpec((6,), "vector"), torch.float64)
    calibration = torch.randn(40, 6, generator=seeded(), dtype=torch.float64)
    whole = score(name, network, calibration, seeded())
    monkeypatch.setattr(batching, "MEMORY", 1.0)
    torch.testing.assert_close(score(name, network, calibration, seeded()), whole)


@pytest.mark.parametrize("name", [*ZOO, "attention"])
def test_macs_are_half_the_flops_of_torch(name: str) -> None:
    """Torch's own counter agrees, also for attention."""
    if name == "attention":
        model: nn.Module = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)  # in training
        example = torch.ones(1, 5, 16)
    else:
        target = load_target(name)
        model, example = target.model, target.example()
    with FlopCounterMode(display=False) as counter:
        model(example)
    assert counter.get_total_flops() > 0
    assert macs_per_input(model, example) == counter.get_total_flops() // 2


class Attention(nn.MultiheadAttention):
    """Attends to its own inputs."""

    def forward(self, inputs: Tensor) -> Tensor:  # type: ignore[override]
        """Return `[N, T, E]`."""
        attended: Tensor = super().forward(inputs, inputs, inputs, need_weights=False)[0]
        return attended


class Paired(nn.Bilinear):
    """Combines its inputs with themselves."""

    def forward(self, inputs: Tensor) -> Tensor:  # type: ignore[override]
        """Return `[N, T, out_features]`."""
        return super().forward(inputs, inputs)


class Experts(nn.Module):
    """Two experts: the first takes two tokens, the second the others."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(2, 16, 8, dtype=torch.bfloat16))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return `[N·T, 8]`."""
        ends = torch.tensor([2, 5], dtype=torch.int32)
        return torch._grouped_mm(inputs.flatten(0, 1).bfloat16(), self.weight, offs=ends)


PROJECTIONS, SIMILARITIES = 4 * 5 * 16 * 16, 2 * 5 * 5 * 16  # of 5 tokens with 16 features


@pytest.mark.parametrize(
    ("make", "macs"),
    [
        (lambda: Attention(16, 2, batch_first=True), PROJECTIONS + SIMILARITIES),
        (
            lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
            PROJECTIONS + SIMILARITIES + 2 * 5 * 16 * 32,
        ),
        (lambda: nn.LSTM(16, 8, batch_first=True), 5 * 4 * 8 * (16 + 8)),
        (lambda: nn.GRU(16, 8, batch_first=True), 5 * 3 * 8 * (16 + 8)),
        (lambda: Paired(16, 16, 3), 5 * 16 * 16 * 3),
        (Experts, 5 * 16 * 8),
    ],
    ids=["attention", "transformer", "LSTM", "GRU", "bilinear", "experts"],
)
def test_macs_of_fused_operations(make: Callable[[], nn.Module], macs: int) -> None:
    """They are counted by hand here; torch's settings are what they were afterwards."""
    backends: Any = torch.backends

    def settings() -> tuple[bool, ...]:
        fast = backends.mha.get_fastpath_enabled()
        return fast, backends.mkldnn.enabled, backends.cudnn.enabled

    before = settings()
    assert macs_per_input(make().eval(), torch.rand(1, 5, 16)) == macs
    assert settings() == before


@pytest.mark.slow
def test_counting_macs_does_not_import_the_compiler() -> None:
    """Importing torch's compiler takes longer than a small search."""
    lines = (
        "import sys, torch; from gaprune.models.macs import macs_per_input",
        "macs_per_input(torch.nn.Linear(3, 2), torch.ones(1, 3))",
        "print('torch._dynamo' in sys.modules)",
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
