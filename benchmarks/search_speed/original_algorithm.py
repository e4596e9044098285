"""The original algorithm as its author describes it, as a baseline; it does not use gaprune.

A genetic algorithm over scores. Every layer sorts its scores in each forward pass and keeps the
top k (Ramanujan et al. 2020, section 3); numpy does crossover and mutation; candidates are scored
one at a time on all labelled images. Where the description is ambiguous, the cheaper reading is
used: one child in ten mutates, not every child.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

Scores = list[NDArray[np.float32]]  # one array of a layer's shape for every layer

MUTANTS = 0.1  # fraction of the children that mutate
RESET = 0.1  # fraction of their scores that is redrawn uniformly from [-1, 1)
BATCH = 1000  # images per forward pass


def subnet(scores: Tensor, density: float) -> Tensor:
    """Return a float mask: 1 for the top fraction `density` of the scores, found by sorting."""
    mask = scores.clone()
    _, order = scores.flatten().sort()
    dropped = int((1 - density) * scores.numel())
    flat = mask.flatten()
    flat[order[:dropped]] = 0
    flat[order[dropped:]] = 1
    return flat.view_as(scores)


class SubnetConv(nn.Conv2d):
    """A convolution whose frozen weights are masked by their scores."""

    def __init__(self, inputs: int, outputs: int, kernel: int, density: float) -> None:
        super().__init__(inputs, outputs, kernel, bias=False)
        self.weight.requires_grad_(False)
        self.scores = nn.Parameter(torch.zeros_like(self.weight), requires_grad=False)
        self.density = density

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Sort, mask, convolve."""
        weight = self.weight * subnet(self.scores.abs(), self.density)
        return functional.conv2d(input, weight)


class SubnetLinear(nn.Linear):
    """A linear layer whose frozen weights are masked by their scores."""

    def __init__(self, inputs: int, outputs: int, density: float) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.weight.requires_grad_(False)
        self.scores = nn.Parameter(torch.zeros_like(self.weight), requires_grad=False)
        self.density = density

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Sort, mask, multiply."""
        weight = self.weight * subnet(self.scores.abs(), self.density)
        return functional.linear(input, weight)


class OriginalCnn(nn.Module):
    """`mnist-cnn` of the zoo with scores; its parameters have the same names."""

    def __init__(self, density: float) -> None:
        super().__init__()
        self.conv1 = SubnetConv(1, 32, 3, density)
        self.conv2 = SubnetConv(32, 64, 3, density)
        self.fc1 = SubnetLinear(9216, 128, density)
        self.fc2 = SubnetLinear(128, 10, density)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of images `[N, 1, 28, 28]`."""
        hidden = functional.relu(self.conv1(images))
        hidden = functional.relu(self.conv2(hidden))
        hidden = functional.max_pool2d(hidden, 2).flatten(1)
        hidden = functional.relu(self.fc1(hidden))
        logits: Tensor = self.fc2(hidden)
        return logits

    @property
    def layers(self) -> Sequence[SubnetConv | SubnetLinear]:
        """The layers in order."""
        return self.conv1, self.conv2, self.fc1, self.fc2


@dataclass(frozen=True)
class Original:
    """The genetic algorithm.

    Attributes:
        model: network with frozen trained weights.
        images: images that score every candidate, `[N, 1, 28, 28]`.
        labels: int64 `[N]`.
        population: candidates per generation.
    """

    model: OriginalCnn
    images: Tensor
    labels: Tensor
    population: int = 100

    def generations(self, random: np.random.Generator) -> Iterator[list[float]]:
        """Yield the fitness of all candidates of each generation; the first one is random."""
        population = [self._draw(random) for _ in range(self.population)]
        while True:
            fitness = [self.fitness(scores) for scores in population]
            yield fitness
            population = [self._child(population, fitness, random) for _ in population]

    @torch.no_grad()
    def fitness(self, scores: Scores) -> float:
        """Return the accuracy on all images with these scores."""
        for layer, layer_scores in zip(self.model.layers, scores, strict=True):
            layer.scores.copy_(torch.from_numpy(layer_scores))
        self.model.eval()
        correct = 0
        batches = zip(self.images.split(BATCH), self.labels.split(BATCH), strict=True)
        for images, labels in batches:
            correct += int((self.model(images).argmax(1) == labels).sum())
        return correct / len(self.labels)

    def _draw(self, random: np.random.Generator) -> Scores:
        """Draw scores as `nn.init.kaiming_uniform_` with a = √5 does: within 1 / √fan-in."""
        scores: Scores = []
        for layer in self.model.layers:
            bound = 1 / np.sqrt(layer.weight[0].numel())
            drawn = random.uniform(-bound, bound, tuple(layer.weight.shape))
            scores.append(drawn.astype(np.float32))
        return scores

    def _child(
        self, population: list[Scores], fitness: list[float], random: np.random.Generator
    ) -> Scores:
        chances = np.asarray(fitness) / np.sum(fitness)
        mother, father = random.choice(len(population), size=2, p=chances)
        child = [
            _one_point(a, b, random)
            for a, b in zip(population[mother], population[father], strict=True)
        ]
        if random.random() < MUTANTS:
            child = [_reset(scores, random) for scores in child]
        return child


def _one_point(
    a: NDArray[np.float32], b: NDArray[np.float32], random: np.random.Generator
) -> NDArray[np.float32]:
    """Return one-point crossover of the scores of one layer."""
    cut = int(random.integers(a.size + 1))
    return np.concatenate([a.ravel()[:cut], b.ravel()[cut:]]).reshape(a.shape)


def _reset(scores: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    chosen = random.random(scores.shape) < RESET
    fresh = random.uniform(-1, 1, scores.shape).astype(np.float32)
    return np.where(chosen, fresh, scores)
