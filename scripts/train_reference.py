"""Train the zoo's reference networks on MNIST and write their checkpoints.

    python scripts/train_reference.py                 # all networks, into the zoo
    python scripts/train_reference.py lenet --out DIR # one network, into DIR

Training is seeded and uses one thread: the same build of torch on the same kind of processor
writes the same bytes.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from gaprune.io.serialization import to_metadata
from gaprune.models.subnormal_numbers import with_subnormals_zeroed
from gaprune.models.zoo import mnist, networks

CHECKPOINTS = Path(mnist.__file__).parent / "checkpoints"


@dataclass(frozen=True)
class TrainingRecipe:
    """Hyperparameters of one network: Adam with weight decay, cosine-annealed over `epochs`."""

    network: type[nn.Module]
    epochs: int
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4


RECIPES = {
    "mnist-mlp": TrainingRecipe(networks.MnistMlp, epochs=10),
    "mnist-cnn": TrainingRecipe(networks.MnistCnn, epochs=6, batch=128),
    "lenet": TrainingRecipe(networks.LeNet, epochs=6),
    "mobile-student": TrainingRecipe(networks.MobileStudent, epochs=6),
    "four-layer": TrainingRecipe(networks.FourLayer, epochs=6),
}


def train(recipe: TrainingRecipe, data: mnist.LabelledImages, seed: int) -> nn.Module:
    """Train one network from its seeded initialisation with cross-entropy."""
    torch.manual_seed(seed)
    model = recipe.network()
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(
        model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    batches = len(data.labels) // recipe.batch
    steps = recipe.epochs * batches
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    model.train()
    for _ in range(recipe.epochs):
        shuffled = torch.randperm(len(data.labels), generator=order)
        for batch in shuffled[: batches * recipe.batch].split(recipe.batch):
            loss = functional.cross_entropy(model(data.images[batch]), data.labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, data: mnist.LabelledImages) -> float:
    """Fraction of `data` whose arg-max output is the label."""
    hits = [
        (model(images).argmax(1) == labels).sum()
        for images, labels in zip(data.images.split(1000), data.labels.split(1000), strict=True)
    ]
    return float(torch.stack(hits).sum()) / len(data.labels)


def main() -> None:
    """Train, measure test accuracy, write `NAME.safetensors` with the recipe as metadata."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names_help = f"networks to train (default: all): {', '.join(RECIPES)}"
    parser.add_argument("names", nargs="*", metavar="NAME", help=names_help)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=CHECKPOINTS)
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in RECIPES:
            parser.error(f"unknown network {name!r}; valid: {', '.join(RECIPES)}")
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    train_data, test_data = mnist.train_set(), mnist.test_set()
    for name in arguments.names or RECIPES:
        started, recipe = time.monotonic(), RECIPES[name]
        model = train(recipe, train_data, arguments.seed)
        score = accuracy(model, test_data)
        state = {
            key: with_subnormals_zeroed(value).contiguous()
            for key, value in model.state_dict().items()
        }
        metadata = to_metadata(
            network=name,
            test_accuracy=f"{score:.4f}",
            seed=str(arguments.seed),
            epochs=str(recipe.epochs),
            optimiser=f"Adam, learning rate {recipe.learning_rate} cosine-annealed, "
            f"weight decay {recipe.weight_decay}, batches of {recipe.batch}",
            torch=torch.__version__,
        )
        save_file(state, arguments.out / f"{name}.safetensors", metadata)
        print(f"{name}: test accuracy {score:.2%}, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
