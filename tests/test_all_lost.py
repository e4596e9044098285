"""A run whose workers all really die, and cannot be replaced: it ends, and goes on later."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gaprune import GapruneError, InputOptions, Result, prune, resume
from gaprune.callbacks import Observer
from gaprune.records import Generation
from gaprune.workers import RetryPolicy, base

SETTINGS: dict[str, Any] = {
    "inputs": InputOptions(range=(0, 1)),
    "sparsity": 0.6,
    "preset": "black-box",
    "population": 3,
    "offspring": 3,
    "calibration_count": 32,
    "validation_count": 32,
    "generations": 60,
}


class Delicate(nn.Module):
    """Notes in which processes it runs, and cannot be loaded while a file is there.

    Args:
        folder: of the notes and the file.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits `[N, 4]`."""
        (self.folder / str(os.getpid())).touch()
        out: Tensor = self.layers(inputs)
        return out

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call] # torch's
        if (self.folder / "locked").exists():
            raise OSError("the network is locked")


class Killing(Observer):
    """Kills both workers once they have worked, and lets none start again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.last = 0

    def generation(self, record: Generation, total: int | None) -> None:
        """Do it, after the second generation at least."""
        notes = {int(note.name) for note in self.folder.glob("[0-9]*")} - {os.getpid()}
        if record.generation < 2 or len(notes) < 2:
            time.sleep(0.2)  # the other one is on its way
            return
        (self.folder / "locked").touch()
        for number in notes:
            os.kill(number, signal.SIGKILL)
        self.last = record.generation


def network(folder: Path) -> nn.Module:
    """Return a network whose classes differ."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = Delicate(folder)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.8)
    return model


def outcome(result: Result) -> tuple[object, ...]:
    """Return what was found, to the bit."""
    masks = {name: mask.tolist() for name, mask in result.masks.items()}
    history = [{**vars(record), "seconds": 0} for record in result.history]
    return masks, history, result.validation_agreement, result.origin


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_run_whose_workers_all_die_keeps_a_checkpoint_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says how; nothing is lost, and what is found is what one process finds."""
    monkeypatch.setattr(base, "RetryPolicy", partial(RetryPolicy, first_wait=0.01))
    notes, folder = tmp_path / "notes", tmp_path / "run"
    killing = Killing(notes)
    with pytest.raises(GapruneError, match=r"all 2 .*locked.*gaprune\.resume\(.*run"):
        prune(network(notes), out=folder, workers=2, observer=killing, **SETTINGS)
    assert killing.last > 1
    (notes / "locked").unlink()
    again = Counting()
    resumed = resume(folder, model=network(notes), workers=1, observer=again)
    assert again.generations == list(range(killing.last + 1, SETTINGS["generations"] + 1))
    assert outcome(resumed) == outcome(prune(network(notes), **SETTINGS))


class Counting(Observer):
    """Remembers which generations were computed."""

    def __init__(self) -> None:
        self.generations: list[int] = []

    def generation(self, record: Generation, total: int | None) -> None:
        """Remember it."""
        self.generations.append(record.generation)
