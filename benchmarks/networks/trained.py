"""Small networks of several domains, trained here: each with its training and test data.

Fashion-MNIST comes from Debian's package `dataset-fashion-mnist` (four IDX files in `DIR/fashion`),
the other data sets are part of scikit-learn. Training is seeded and uses one thread; checkpoints
are kept in a folder, so that every benchmark row prunes the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.networks.real_network import data_path
from gaprune.calibration.samples import Samples
from gaprune.io.weights import apply_state, load_state
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, target_from_module
from gaprune.models.zoo.mnist import read_idx
from gaprune.models.zoo.networks import MnistMlp

LEARNING_RATE, BATCH = 1e-3, 128
TEST_SHARE = 0.3  # of the data sets that come in one piece


class Data(NamedTuple):
    """Training and test data: inputs `[N, …]` as the network takes them, labels int64 `[N]`."""

    train: Samples
    test: Samples


class FashionCnn(nn.Module):
    """3×3 convolutions of 16 and 32 filters, each with 2×2 max pooling, then 1568-128-10."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc1 = nn.Linear(1568, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Map `[N, 1, 28, 28]` to logits `[N, 10]`."""
        hidden = functional.max_pool2d(functional.relu(self.conv1(images)), 2)
        hidden = functional.max_pool2d(functional.relu(self.conv2(hidden)), 2).flatten(1)
        logits: Tensor = self.fc2(functional.relu(self.fc1(hidden)))
        return logits


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 else None

    def forward(self, features: Tensor) -> Tensor:
        """Map `[N, inputs, H, W]` to `[N, outputs, H/stride, W/stride]`."""
        shortcut = features if self.shortcut is None else self.shortcut(features)
        residual = functional.relu(self.bn1(self.conv1(features)))
        return functional.relu(self.bn2(self.conv2(residual)) + shortcut)


class FashionResNet(nn.Module):
    """A strided stem and four residual blocks of 16, 32, 32 and 64 channels with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.blocks = nn.Sequential(
            _Residual(16, 16), _Residual(16, 32), _Residual(32, 32), _Residual(32, 64)
        )
        self.linear = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Map `[N, 1, 28, 28]` to logits `[N, 10]`."""
        logits: Tensor = self.linear(self.blocks(self.stem(images)).mean((2, 3)))
        return logits


class DigitsCnn(nn.Module):
    """3×3 convolutions of 16 and 32 filters on 8×8 images, one 2×2 max pooling, then 512-10."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc = nn.Linear(512, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Map `[N, 1, 8, 8]` to logits `[N, 10]`."""
        hidden = functional.relu(self.conv2(functional.relu(self.conv1(images))))
        logits: Tensor = self.fc(functional.max_pool2d(hidden, 2).flatten(1))
        return logits


def mlp(*sizes: int) -> nn.Sequential:
    """Return linear layers of these sizes with ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def fashion(data: Path | None) -> Data:
    """Return Fashion-MNIST in [0, 1]: 60,000 and 10,000 images `[1, 28, 28]`."""

    def part(prefix: str) -> Samples:
        paths = (f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz")
        images, labels = (
            torch.from_numpy(read_idx(data_path(data, "fashion", path))) for path in paths
        )
        return Samples(images.float().div_(255).unsqueeze(1), labels.long(), f"fashion {prefix}")

    return Data(part("train"), part("t10k"))


def digits(_: Path | None, *, images: bool = False) -> Data:
    """Return scikit-learn's 1,797 digits in [0, 1], as vectors `[64]` or images `[1, 8, 8]`."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 # an optional package

    loaded = load_digits()
    inputs = torch.from_numpy(loaded.data).float() / 16
    return _halves(inputs.view(-1, 1, 8, 8) if images else inputs, loaded.target, "digits")


def breast_cancer(_: Path | None) -> Data:
    """Return scikit-learn's breast cancer data, 569 standardised vectors `[30]`."""
    from sklearn.datasets import load_breast_cancer  # noqa: PLC0415 # an optional package

    loaded = load_breast_cancer()
    inputs = torch.from_numpy(loaded.data).float()
    inputs = ((inputs - inputs.mean(0)) / inputs.std(0)).clamp(-3, 3)
    return _halves(inputs, loaded.target, "breast cancer")


def _halves(inputs: Tensor, labels: object, source: str) -> Data:
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    samples = Samples(inputs, torch.as_tensor(labels).long(), source)
    held_out = int(TEST_SHARE * len(inputs))
    return Data(samples.take(order[held_out:]), samples.take(order[:held_out]))


@dataclass(frozen=True)
class TrainedNetwork:
    """How a network is built, trained and described."""

    build: Callable[[], nn.Module]
    data: Callable[[Path | None], Data]
    inputs: InputOptions
    epochs: int


FASHION_IMAGES = InputOptions((1, 28, 28), kind="image", range=(0, 1))
TRAINED = {
    "fashion-mlp": TrainedNetwork(MnistMlp, fashion, FASHION_IMAGES, 5),
    "fashion-cnn": TrainedNetwork(FashionCnn, fashion, FASHION_IMAGES, 3),
    "fashion-resnet": TrainedNetwork(FashionResNet, fashion, FASHION_IMAGES, 4),
    "digits-vectors": TrainedNetwork(
        lambda: mlp(64, 128, 64, 10), digits, InputOptions(range=(0, 1)), 60
    ),
    "digits-images": TrainedNetwork(
        DigitsCnn,
        lambda data: digits(data, images=True),
        InputOptions((1, 8, 8), kind="image", range=(0, 1)),
        60,
    ),
    "breast-cancer": TrainedNetwork(
        lambda: mlp(30, 64, 32, 2), breast_cancer, InputOptions(range=(-3, 3)), 60
    ),
}


def open_trained(name: str, data: Path | None, cache: Path) -> tuple[Target, Data]:
    """Return a network of `TRAINED` with its data, trained now unless its checkpoint is in `cache`.

    Raises:
        InputError: the data folder lacks a file.
    """
    recipe = TRAINED[name]
    samples, path = recipe.data(data), cache / f"{name}.safetensors"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        save_file(_train(recipe, samples.train).state_dict(), path)
    model = recipe.build()
    apply_state(model, load_state(path))
    return target_from_module(model.eval(), inputs=recipe.inputs, name=name), samples


def _train(recipe: TrainedNetwork, samples: Samples) -> nn.Module:
    """Train with Adam and a cosine schedule, without weight decay."""
    assert samples.labels is not None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = recipe.build().train()
    order = torch.Generator().manual_seed(0)
    adam = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    batches = len(samples.inputs) // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, recipe.epochs * batches)
    for _ in range(recipe.epochs):
        for index in samples.random_order(order)[: batches * BATCH].split(BATCH):
            outputs = model(samples.inputs[index])
            loss = functional.cross_entropy(outputs, samples.labels[index])
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()
    return model.eval()
