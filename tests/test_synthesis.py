"""Inverted inputs of a target: made once, found again, the seed of the run undisturbed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from search_cases import seeded
from torch import nn

from gaprune.calibration.generators.mixture import GeneratorMixture
from gaprune.calibration.generators.procedural import GENERATORS
from gaprune.calibration.inversion.batchnorm import InversionOptions
from gaprune.calibration.inversion.synthesis import inverted_samples
from gaprune.callbacks import Observer
from gaprune.models.target import InputOptions, Target, target_from_module

HOW = InversionOptions(steps=2, batch=8)


class Listener(Observer):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.warnings: list[str] = []

    def progress(self, what: str, done: float, total: float | None) -> None:
        """Note the steps."""
        self.steps.append(done)

    def warning(self, text: str) -> None:
        """Note the text."""
        self.warnings.append(text)


def target_of(seed: int = 3) -> Target:
    """Return a small target with BatchNorm."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    return target_from_module(net, inputs=InputOptions(range=(-1, 1)))


def starts_of(target: Target) -> GeneratorMixture:
    """Return where inversion begins."""
    return GeneratorMixture(target.inputs, {"noise": 1.0}, target.dtype)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAPRUNE_CACHE", str(tmp_path))


def test_the_second_time_they_are_read(tmp_path: Path) -> None:
    """The same bits without a step; the generator is left in the same state."""
    first, second, told = seeded(1), seeded(1), Listener()
    target = target_of()
    made = inverted_samples(target, starts_of(target), 16, first, HOW, told)
    steps = len(told.steps)
    read = inverted_samples(target, starts_of(target), 16, second, HOW, told)
    assert torch.equal(made.inputs, read.inputs)
    assert steps > 0
    assert len(told.steps) == steps
    assert torch.equal(first.get_state(), second.get_state())
    assert (
        made.source == read.source == "16 inputs inverted from BatchNorm, started from noise 100%"
    )
    assert told.warnings == []
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


def test_whatever_changes_the_inputs_makes_new_ones(tmp_path: Path) -> None:
    """GeneratorChoice, seed, number, starts and settings each have a file of their own."""
    target, how = target_of(), HOW
    cases = [
        (target, {"noise": 1.0}, 16, 1, how),
        (target_of(4), {"noise": 1.0}, 16, 1, how),
        (target, {"noise": 1.0}, 8, 1, how),
        (target, {"noise": 1.0}, 16, 2, how),
        (target, {next(iter(portions_of(target))): 1.0}, 16, 1, how),
        (target, {"noise": 1.0}, 16, 1, replace(how, learning_rate=0.03)),
    ]
    for number, (one, portions, count, seed, recipe) in enumerate(cases, start=1):
        mixture = GeneratorMixture(one.inputs, portions, one.dtype)
        made = inverted_samples(one, mixture, count, seeded(seed), recipe, Observer())
        assert made.inputs.shape == (count, 6)
        assert len(list(tmp_path.rglob("*.safetensors"))) == number


def portions_of(target: Target) -> dict[str, float]:
    """Return the generators of its kind."""
    return dict.fromkeys(GENERATORS[target.inputs.kind], 1.0)


def test_an_unusable_cache_is_said_and_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inputs are those that would have been kept."""
    target, told = target_of(), Listener()
    kept = inverted_samples(target, starts_of(target), 8, seeded(1), HOW, Observer())
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("GAPRUNE_CACHE", str(blocked))
    made = inverted_samples(target, starts_of(target), 8, seeded(1), HOW, told)
    assert torch.equal(made.inputs, kept.inputs)
    assert len(told.warnings) == 1
