"""Small networks and runs that the tests of exports and measurements share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gaprune import InputOptions, Result, prune
from gaprune.config import make_settings
from gaprune.models.sources.optional_packages import import_extra
from gaprune.runs.job import make_job
from gaprune.runs.prune import prune_target

TINY: dict[str, Any] = {"method": "magnitude", "calibration_count": 16, "validation_count": 16}


class Branched(nn.Module):
    """Convolution, BatchNorm with buffers, two layers that share a weight, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.a, self.b, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.b.weight = self.a.weight

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits `[N, 3]`."""
        features = self.norm(self.conv(inputs)).relu().flatten(1)
        out: Tensor = self.head(self.b(self.a(features).relu()).relu())
        return out


def dense_network() -> nn.Module:
    """Return the network before pruning, with BatchNorm statistics of one batch."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = Branched()
        model(torch.rand(32, 1, 4, 4))
    return model.eval()


def tiny_result(**settings: Any) -> Result:
    """Prune `dense_network` by magnitude."""
    inputs = InputOptions(shape=(1, 4, 4), range=(0, 1))
    return prune(dense_network(), sparsity=0.7, inputs=inputs, **TINY, **settings)


def zoo_result(name: str, sparsity: float) -> Result:
    """Prune a bundled network by magnitude, with few validation inputs."""
    target, _ = make_job({"target": name, "sparsity": sparsity}).load()
    return prune_target(target, make_settings({"sparsity": sparsity, **TINY}))


def save_bert(folder: Path) -> tuple[Any, nn.Module]:
    """Save a tiny BERT; return the module transformers and the network."""
    transformers: Any = import_extra("transformers", "hf", "test")
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = transformers.BertConfig(**sizes, num_attention_heads=2)
        model = transformers.BertModel(config).eval()
    model.save_pretrained(folder)
    return transformers, model


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Tell whether two state dicts are equal in every bit, also of NaN and −0."""
    return first.keys() == second.keys() and all(
        value.dtype == second[name].dtype
        and value.shape == second[name].shape
        and value.contiguous().reshape(-1).view(torch.uint8).tolist()
        == second[name].contiguous().reshape(-1).view(torch.uint8).tolist()
        for name, value in first.items()
    )
