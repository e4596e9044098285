"""The bundled reference networks by name, with their checkpoints and inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from gaprune.errors import unknown_name
from gaprune.io.serialization import from_metadata
from gaprune.io.tensor_files import open_tensors
from gaprune.io.weights import apply_state, load_state
from gaprune.models.input_spec import InputSpec
from gaprune.models.zoo.networks import FourLayer, LeNet, MnistCnn, MnistMlp, MobileStudent

CHECKPOINTS = Path(__file__).parent / "checkpoints"
MNIST_INPUT = InputSpec(shape=(1, 28, 28), kind="image", low=0.0, high=1.0)


@dataclass(frozen=True)
class ZooEntry:
    """A reference network; `factory` builds it with random weights."""

    name: str
    factory: Callable[[], nn.Module]
    description: str
    inputs: InputSpec = MNIST_INPUT

    @property
    def checkpoint(self) -> Path:
        """The safetensors file with its trained weights."""
        return CHECKPOINTS / f"{self.name}.safetensors"

    @property
    def metadata(self) -> dict[str, str]:
        """How the checkpoint was trained, from the metadata of its file."""
        with open_tensors(self.checkpoint) as file:
            return from_metadata(file.metadata())

    @property
    def dense_accuracy(self) -> float:
        """Accuracy on the 10,000 MNIST test images before pruning, measured after training."""
        return float(self.metadata["test_accuracy"])


ZOO: dict[str, ZooEntry] = {
    entry.name: entry
    for entry in (
        ZooEntry("mnist-mlp", MnistMlp, "784-250-100-10 with biases"),
        ZooEntry("mnist-cnn", MnistCnn, "two 3x3 convolutions (32, 64), 9216-128-10, no biases"),
        ZooEntry("lenet", LeNet, "two 5x5 convolutions (6, 16), 120-84-10, no BatchNorm"),
        ZooEntry("mobile-student", MobileStudent, "depthwise-separable blocks with BatchNorm"),
        ZooEntry(
            "four-layer",
            FourLayer,
            "strided 7x7 and 5x5 convolutions (16, 32), 128-256-10, with biases",
        ),
    )
}


def load_zoo_network(name: str) -> nn.Module:
    """Return a trained network, in evaluation mode; `InputError` if the zoo has none `name`."""
    if name not in ZOO:
        raise unknown_name("zoo network", name, ZOO)
    entry = ZOO[name]
    model = entry.factory()
    apply_state(model, load_state(entry.checkpoint))
    return model.eval()
