"""Small networks and run directories that tests of reports share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from comparison_cases import QUICK
from torch import Tensor, nn

from gaprune import InputOptions, prune
from gaprune.io.manifest import FILES as LISTED
from gaprune.io.manifest import file_entries, sealed
from gaprune.io.run_files import CONFIG, CONFIG_SHA256, RECORD, config_sha256, read_config

TINY: dict[str, Any] = {**QUICK, "generations": 2, "calibration": ("procedural",)}
NAUGHTY = "<script>alert(1)</script>&\"'"


class Pictures(nn.Module):
    """A convolution and a linear layer, on images of two channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(4 * 36, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits `[N, 3]`."""
        out: Tensor = self.head(self.conv(inputs).relu().flatten(1))
        return out


class Named(nn.Module):
    """Linear layers on small images; the name of one is markup with a script."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(36, 8)
        self.add_module(NAUGHTY, nn.Linear(8, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits `[N, 3]`."""
        out: Tensor = self.get_submodule(NAUGHTY)(self.first(inputs.flatten(1)).relu())
        return out


class Ids(nn.Module):
    """The mean of embeddings, then classes."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(30, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits `[N, 3]`."""
        out: Tensor = self.head(self.table(ids).mean(1))
        return out


def built(kind: type[nn.Module]) -> nn.Module:
    """Return a network whose classes differ."""
    torch.manual_seed(0)
    model = kind()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.6)
    return model


def labelled(*shape: int) -> tuple[Tensor, Tensor]:
    """Return uniform inputs and random labels of three classes."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(48, *shape, generator=generator), torch.arange(48) % 3


def pictures(out: Path, **settings: Any) -> Path:
    """Prune `Pictures`, with test labels, into a folder."""
    inputs = InputOptions((2, 8, 8), kind="image", range=(0, 1))
    settings = {"sparsity": 0.6, **TINY, **settings}
    prune(built(Pictures), inputs=inputs, test=labelled(2, 8, 8), out=out, **settings)
    return out


def named(out: Path) -> Path:
    """Prune `Named` without labels into a folder."""
    inputs = InputOptions((1, 6, 6), kind="image", range=(0, 1))
    prune(built(Named), inputs=inputs, out=out, sparsity=0.5, **TINY)
    return out


def reseal(run: Path) -> None:
    """Give edited files of a run the hashes of their present content."""
    record = json.loads((run / RECORD).read_text())
    record[LISTED] = file_entries(run, [name for name in record[LISTED] if (run / name).is_file()])
    record[CONFIG_SHA256] = config_sha256(read_config(run / CONFIG))
    (run / RECORD).write_text(json.dumps(sealed(record)))
