"""Small seeded networks and inputs that the criterion tests share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gaprune.criteria import DenseNetwork
from gaprune.masks.supermask import Layout
from gaprune.models.input_spec import InputSpec

torch.set_num_threads(1)


class Attention(nn.Module):
    """Token ids → embedding → attention → logits over 3 classes: `[N, 5]` → `[N, 3]`."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embedding(ids)
        hidden = hidden + self.attention(hidden, hidden, hidden, need_weights=False)[0]
        logits: Tensor = self.head(hidden.mean(1))
        return logits


class Routes(nn.Module):
    """Vectors `[N, 4]` → logits `[N, 3]` by a layer that depends on the size of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.single, self.many, self.never = (nn.Linear(4, 6) for _ in range(3))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        route = self.single if len(x) == 1 else self.many
        logits: Tensor = self.head(route(x).relu())
        return logits


def seeded(seed: int = 0) -> torch.Generator:
    """Return a new generator."""
    return torch.Generator().manual_seed(seed)


def network_of(
    build: Callable[[], nn.Module],
    spec: InputSpec,
    dtype: torch.dtype = torch.float32,
    vectors: bool = False,
) -> DenseNetwork:
    """Build a frozen network with seeded weights; `vectors` makes biases and norms prunable."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = build().to(dtype).eval().requires_grad_(False)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # statistics that differ from a new network
                nn.init.uniform_(module.get_buffer("running_mean"), -0.1, 0.1)
                nn.init.uniform_(module.get_buffer("running_var"), 0.2, 2)
    parameters = model.named_parameters()
    weights = {name: p.detach() for name, p in parameters if vectors or p.ndim > 1}
    return DenseNetwork(model, weights, Layout.of(weights), spec)


VECTOR = InputSpec((4,), "vector")
IMAGE = InputSpec((1, 28, 28), "image")
SMALL_IMAGE = InputSpec((1, 12, 12), "image")
TOKENS = InputSpec((5,), "tokens", vocabulary=11)


def tiny() -> DenseNetwork:
    """Return a smooth two-layer classifier in float64: 4 → 5 → 3, 35 weights."""
    return network_of(
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), VECTOR, torch.float64
    )


def tiny_calibration(count: int = 40) -> Tensor:
    """Return inputs for `tiny`."""
    return torch.randn(count, 4, generator=seeded(1), dtype=torch.float64)


def convolutional() -> nn.Module:
    """Build a small LeNet: a convolution, pooling and two linear layers; 1,296 weights."""
    convolution = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*convolution, nn.Linear(100, 12), nn.ReLU(), nn.Linear(12, 5))


def depthwise() -> nn.Module:
    """Build a small MobileNet: a strided stem, a depthwise-separable block, pooling, linear."""
    stem = [nn.Conv2d(1, 4, 3, 2, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
    block = [nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
    head = [nn.Conv2d(4, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)]
    return nn.Sequential(*stem, *block, *head)


def small_images() -> Tensor:
    """Return 20 inputs for `convolutional` and `depthwise`."""
    return torch.rand(20, 1, 12, 12, generator=seeded())


CASES: dict[str, tuple[Callable[[], DenseNetwork], Callable[[], Tensor]]] = {
    "convolutional": (lambda: network_of(convolutional, SMALL_IMAGE), small_images),
    "depthwise": (lambda: network_of(depthwise, SMALL_IMAGE, vectors=True), small_images),
    "attention": (
        lambda: network_of(Attention, TOKENS, vectors=True),
        lambda: torch.randint(11, (20, 5), generator=seeded()),
    ),
}
