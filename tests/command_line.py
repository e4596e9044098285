"""What tests of the command line share: a folder with a network, and a way to run commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gaprune.cli import main

NETWORK = """
import os
import signal
import torch
from torch import nn

print("a factory file may print")

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.fc2(self.fc1(x).relu())

class Shy(Net):
    def forward(self, x):
        if len(x) > 8:
            raise RuntimeError("too many of them")
        return super().forward(x)

def make():
    return Net()

def make_shy():
    return Shy()

calls = 0

def interrupt(outputs, teacher, labels):
    global calls
    calls += 1
    if calls == int(os.environ["INTERRUPT_AT"]):
        os.kill(os.getpid(), signal.SIGINT)
    return grade(outputs, teacher, labels)

def grade(outputs, teacher, labels):
    return -(outputs - teacher).abs().mean()
"""
TINY = (
    *("--generations", "1", "--steps", "2", "--batch", "8", "--population", "2"),
    *("--offspring", "2", "--calibration-count", "32", "--validation-count", "32"),
)
OWN = ("net.py:make", "--weights", "net.safetensors", "--range", "0,1")
PRUNE = ("prune", *OWN, "--sparsity", "0.5", *TINY)


class Ran(NamedTuple):
    """What one command did."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


class Net(nn.Module):
    """The network of `NETWORK`, to load results into."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits `[N, 3]`."""
        out: Tensor = self.fc2(self.fc1(inputs).relu())
        return out


def run_here(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> Ran:
    """Run a command in this process."""
    capsys.readouterr()
    code = main(arguments)
    return Ran(code, *capsys.readouterr())


def fill(folder: Path) -> None:
    """Put a network, its weights, good inputs and bad ones into a folder."""
    torch.manual_seed(0)
    (folder / "net.py").write_text(NETWORK)
    save_file(Net().state_dict(), folder / "net.safetensors")
    numbers = np.random.default_rng(0)
    inputs = numbers.random((40, 12), dtype=np.float32)
    labels = numbers.integers(0, 3, 40)
    np.savez(folder / "labelled.npz", x=inputs, y=labels)
    np.savez(folder / "plain.npz", x=inputs)
    np.savez(folder / "wide.npz", x=inputs[:, :7])
    np.savez(folder / "no_rows.npz", x=inputs[:0])
    np.savez(folder / "text.npz", x=np.full((4, 12), "a"))
    (folder / "empty.npz").write_bytes(b"")
    (folder / "typo.toml").write_text("sparsiti = 0.5\n")
    (folder / "broken.toml").write_text("sparsity = \n")
    (folder / "wrong.toml").write_text("target = 'net.py:make'\nsparsity = 0.5\nseed = 'x'\n")
    (folder / "full").mkdir()
    (folder / "full" / "notes.txt").write_text("mine")


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return everything below a folder but Python's caches: path → content."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }
