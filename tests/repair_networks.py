"""Small seeded networks with norms, biases or both, and masks, for the tests of repair."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from search_cases import seeded
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase

from gaprune.calibration.generators.mixture import GeneratorMixture
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evaluation.forward_modes import (
    GradientOutputs,
    GuidedForward,
    RepairedForward,
    TeacherBatch,
)
from gaprune.evaluation.objectives import OBJECTIVES
from gaprune.masks.supermask import masked_weights
from gaprune.models.forward import batched_forward
from gaprune.models.input_spec import InputOptions, InputSpec
from gaprune.models.target import Target, target_from_module
from gaprune.repair import find_repair_sites

torch.set_num_threads(1)

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Convolutional(nn.Module):
    """Two convolutions with BatchNorm in 1 to 3 dimensions, then a linear layer."""

    def __init__(self, axes: int = 2) -> None:
        super().__init__()
        self.conv1 = CONVOLUTIONS[axes](2, 6, 3, padding=1, bias=False)
        self.bn1 = NORMS[axes](6)
        self.conv2 = CONVOLUTIONS[axes](6, 5, 3, padding=1, bias=False)
        self.bn2 = NORMS[axes](5)
        self.head = nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = functional.relu(self.bn1(self.conv1(inputs)))
        hidden = functional.relu(self.bn2(self.conv2(hidden)))
        return self.head(hidden.flatten(2).mean(2))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """A stem and two blocks whose second BatchNorm is added to the way around."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(4, 4, 3, padding=1, bias=False),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.Conv2d(4, 4, 3, padding=1, bias=False),
                nn.BatchNorm2d(4),
            )
            for _ in range(2)
        )
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = functional.relu(self.stem(inputs))
        for block in self.blocks:
            hidden = functional.relu(hidden + block(hidden))
        return self.head(hidden.mean((2, 3)))  # type: ignore[no-any-return]


class Perceptron(nn.Module):
    """Three linear layers; the second has no bias, the first feeds a BatchNorm if wanted."""

    def __init__(self, *, norm: bool = False, middle_bias: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 12)
        self.norm = nn.BatchNorm1d(12) if norm else nn.Identity()
        self.fc2 = nn.Linear(12, 8, bias=middle_bias)
        self.fc3 = nn.Linear(8, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.fc1(inputs)))
        return self.fc3(torch.tanh(self.fc2(hidden)))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """One transformer layer with its norms behind, over 5 positions of 8 features."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.layer(inputs).mean(1))  # type: ignore[no-any-return]


def target_of(
    build: Callable[[], nn.Module], shape: tuple[int, ...], *prune_also: str, double: bool = True
) -> Target:
    """Build a network of seeded weights and statistics, in float64 unless told otherwise."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = build().eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.uniform_(parameter, -0.5, 0.5)
        for module in model.modules():
            if isinstance(module, _NormBase) and module.running_mean is not None:
                nn.init.uniform_(module.get_buffer("running_mean"), -0.1, 0.1)
                nn.init.uniform_(module.get_buffer("running_var"), 0.2, 2)
                nn.init.uniform_(module.get_parameter("weight"), 0.5, 1.5)
    return target_from_module(
        model.double() if double else model,
        inputs=InputOptions(shape=shape, kind="vector"),
        prune_also=prune_also,
    )


def normed() -> Perceptron:
    """Return a network with one BatchNorm."""
    return Perceptron(norm=True, middle_bias=True)


REPAIRABLE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "batch norm": (normed, (6,)),
    "convolutions": (Convolutional, (2, 6, 6)),
    "biases only": (lambda: Perceptron(middle_bias=True), (6,)),
}
"""Networks with BatchNorm, or with biases alone, and the shape of one input."""


def random_masks(target: Target, density: float = 0.6, seed: int = 1) -> dict[str, Tensor]:
    """Return masks that keep each prunable parameter with probability `density`."""
    generator = seeded(seed)
    return {
        name: torch.rand(weight.shape, generator=generator) < density
        for name, weight in target.weights.items()
    }


def calibration_for(target: Target, count: int = 24, seed: int = 2) -> Tensor:
    """Return normal inputs whose mean differs from input to input."""
    size = (count, *target.inputs.shape)
    level = torch.randn(count, *[1] * len(target.inputs.shape), generator=seeded(seed + 100))
    return (torch.randn(size, generator=seeded(seed)) + level).to(target.dtype)


def loop_evaluator(
    target: Target, *, count: int = 48, gradient_share: float = 1.0, labels: bool = False
) -> Evaluator:
    """Return an evaluator with repair in the loop, and 32 stored inputs for gradient steps."""
    search, validation, pool = (
        shown(target, calibration_for(target, size, seed), labels=labels)
        for size, seed in ((count, 2), (40, 5), (32, 6))
    )
    sites = find_repair_sites(target.model, search.inputs, frozen=target.weights)
    fresh = GeneratorMixture(
        InputSpec(target.inputs.shape, "vector"), {"uniform": 1.0}, target.dtype
    )
    return Evaluator(
        network=target,
        layout=target.layout,
        objective=OBJECTIVES["kl"],
        search=search,
        validation=validation,
        mixture=None if gradient_share == 1 else fresh,
        gradient_inputs=pool if gradient_share else None,
        gradient_share=gradient_share,
        rungs=(count // 3, count),
        forward_mode=RepairedForward(sites, search.inputs),
    )


def shown(target: Target, inputs: Tensor, *, labels: bool = False) -> TeacherBatch:
    """Return inputs with the dense network's answers, and its classes as labels."""
    teacher = batched_forward(target.model, inputs)
    return TeacherBatch(inputs, teacher, teacher.argmax(1) if labels else None)


def in_loop_evaluator(target: Target, *, features: float = 0.0, share: float = 1.0) -> Evaluator:
    """Return an evaluator with repair in the loop and a feature loss of that weight."""
    evaluator = loop_evaluator(target, gradient_share=share)
    assert isinstance(evaluator.forward_mode, RepairedForward)
    return replace(evaluator, forward_mode=replace(evaluator.forward_mode, features=features))


def guided_evaluator(
    target: Target,
    *,
    features: float = 0.0,
    share: float = 1.0,
    statistics_loss: float = 0.0,
    fade: float = 1.0,
) -> Evaluator:
    """Return an evaluator of the strict network whose gradient steps are guided."""
    evaluator = in_loop_evaluator(target, features=features, share=share)
    assert isinstance(evaluator.forward_mode, RepairedForward)
    return replace(
        evaluator, forward_mode=GuidedForward(evaluator.forward_mode, statistics_loss, fade)
    )


def flat_mask(target: Target, seed: int = 1) -> Tensor:
    """Return a random flat mask."""
    return target.layout.flatten(random_masks(target, seed=seed)).bool()


def masked(target: Target, mask: Tensor) -> dict[str, Tensor]:
    """Return the weights under a flat mask."""
    return masked_weights(target.weights, target.layout.split(mask))


def gradient_step(evaluator: Evaluator, mask: Tensor, batch: TeacherBatch) -> GradientOutputs:
    """Return the outputs and the penalty of a candidate in a gradient step."""
    weights = masked_weights(evaluator.network.weights, evaluator.layout.split(mask))
    return evaluator.forward_mode.gradient_outputs(evaluator.network.model, weights, batch)


@contextmanager
def watched(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of all modules of some kinds, by name, while forwards run."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _args: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple) else output
            assert isinstance(first, Tensor)
            seen[name] = first.clone()

        return hook

    handles = [
        module.register_forward_hook(keep(name))
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def outputs_of(model: nn.Module, inputs: Tensor, *kinds: type[nn.Module]) -> dict[str, Tensor]:
    """Return what every module of some kinds puts out on `inputs`."""
    with watched(model, kinds) as seen, torch.no_grad():
        model(inputs)
    return seen


def hook_count(model: nn.Module) -> int:
    """Return how many forward hooks and pre-hooks hang on a network."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
