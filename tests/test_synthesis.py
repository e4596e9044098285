"""Inverted inputs and token sequences of a target, cached on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from batchnorm_targets import Listener
from criterion_networks import Attention
from search_cases import seeded
from torch import Tensor, nn

from gaprune.calibration.calibration_set import make_calibration_set
from gaprune.calibration.generators.mixture import GeneratorMixture
from gaprune.calibration.inversion.batchnorm import InversionOptions
from gaprune.calibration.inversion.self_text import keep_likely
from gaprune.calibration.inversion.synthesis import (
    ROWS,
    VARYING,
    WRITING,
    Synthesis,
)
from gaprune.calibration.inversion.token_search import information, spread_of
from gaprune.calibration.samples import Samples
from gaprune.callbacks import Observer
from gaprune.config import Settings, make_settings
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, target_from_module

QUICK = InversionOptions(steps=3)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAPRUNE_CACHE", str(tmp_path))


def normed(seed: int = 3) -> Target:
    """Return a small target with BatchNorm."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    return target_from_module(net, inputs=InputOptions(range=(-1, 1)))


class Successor(nn.Module):
    """A causal language model of 11 ids: id i is followed by i + 1."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 11), nn.Linear(11, 11, bias=False)
        with torch.no_grad():
            self.embedding.weight.copy_(torch.eye(11))
            self.head.weight.copy_(30 * torch.eye(11).roll(1, 0))

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embedding(ids))
        return logits


def causal() -> Target:
    """Return a causal language model."""
    return target_from_module(Successor(), inputs=InputOptions((5,)))


def classifier() -> Target:
    """Return a network whose classes depend on its ids."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = Attention()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2)
    return target_from_module(model, inputs=InputOptions((5,)))


def mixture_of(target: Target, name: str) -> GeneratorMixture:
    """Return a mixture of one generator."""
    return GeneratorMixture(target.inputs, {name: 1.0}, target.dtype)


def invert(
    target: Target, seed: int = 1, count: int = 16, name: str = "noise", **options: Any
) -> Samples:
    """Invert a target."""
    synthesis = Synthesis(target, mixture_of(target, name), seeded(seed), Observer())
    return synthesis.inverted(count, replace(QUICK, **options))


def sequences(
    target: Target, generator: torch.Generator, observer: Observer, seconds: float | None = None
) -> Samples:
    """Make nine sequences, or as many as the time allows."""
    synthesis = Synthesis(target, mixture_of(target, "zipf-bursts"), generator, observer)
    return synthesis.sequences(9 if seconds is None else 3 * ROWS, seconds)


def settings_of(**values: Any) -> Settings:
    """Return settings of a small run on impressions."""
    counts = {"calibration_count": 40, "validation_count": 24, "impressions": 30}
    return make_settings({"sparsity": 0.5, "calibration": ("impressions",), **counts, **values})


@pytest.mark.parametrize("make", [normed, causal, classifier])
def test_the_second_time_inputs_are_read(make: Callable[[], Target], tmp_path: Path) -> None:
    """The second call reads the same bits without a step; the generator advances equally."""

    def samples(generator: torch.Generator, listener: Listener) -> Samples:
        target = make()
        if target.inputs.kind == "tokens":
            return sequences(target, generator, listener)
        synthesis = Synthesis(target, mixture_of(target, "noise"), generator, listener)
        return synthesis.inverted(9, QUICK)

    first, second, told, again = seeded(1), seeded(1), Listener(), Listener()
    made, read = samples(first, told), samples(second, again)
    assert told.steps
    assert not again.steps
    assert not told.warnings
    assert torch.equal(made.inputs, read.inputs)
    assert made.source == read.source
    assert torch.equal(first.get_state(), second.get_state())
    assert len(list((tmp_path / "calibration").iterdir())) == 1
    assert not torch.equal(made.inputs, samples(seeded(2), told).inputs)


def test_whatever_changes_the_inputs_makes_new_ones(tmp_path: Path) -> None:
    """Weights, seed, number, generators and options each have a file of their own."""
    target = normed()
    cases: list[tuple[Target, dict[str, Any]]] = [
        (target, {}),
        (normed(4), {}),
        (target, {"count": 8}),
        (target, {"seed": 2}),
        (target, {"name": "sparse"}),
        (target, {"learning_rate": 0.03}),
    ]
    for number, (network, changes) in enumerate(cases, start=1):
        assert invert(network, **changes).inputs.shape == (changes.get("count", 16), 6)
        assert len(list(tmp_path.rglob("*.safetensors"))) == number


def test_a_language_model_writes_sequences() -> None:
    """Each token follows from the one before; `inversion` is replaced, with a warning."""
    listener = Listener()
    for calibration in ("impressions", "inversion"):
        settings = settings_of(calibration=(calibration,))
        plan = make_calibration_set(causal(), settings, seeded(), listener)
        assert plan.gradient_inputs is not None
        ids = plan.gradient_inputs.inputs
        assert (ids.shape, ids.dtype) == ((30, 5), torch.int64)
        assert torch.equal(ids[:, 1:], (ids[:, :-1] + 1) % 11)
        assert plan.provenance.level == "inversion"
    assert len(listener.warnings) == 1
    assert "token ids" in listener.warnings[0]


def test_another_network_gets_sequences_that_spread_its_outputs() -> None:
    """More than the sequences that the search started from."""
    target = classifier()
    varied = sequences(target, seeded(1), Observer())
    seed = int(torch.randint(2**62, (), generator=seeded(1)))
    starts = mixture_of(target, "zipf-bursts").draw(9, seeded(seed))
    after, before = (spread_of(target.model(x), information) for x in (varied.inputs, starts))
    assert after > before
    plan = make_calibration_set(target, settings_of(), seeded())
    assert "30 sequences varied" in plan.provenance.sources[0]


def test_a_time_limit_ends_the_work() -> None:
    """One batch is always written; if no token can be replaced, the starts remain."""
    listener = Listener()
    drafts = torch.arange(ROWS)
    few = len(keep_likely(drafts, drafts.float()))
    assert len(sequences(causal(), seeded(), listener, 1e-9).inputs) == few < ROWS
    assert listener.steps == [(WRITING, ROWS)]
    target = classifier()
    varied = sequences(target, seeded(1), listener, 1e-9)
    seed = int(torch.randint(2**62, (), generator=seeded(1)))
    starts = mixture_of(target, "zipf-bursts").draw(3 * ROWS, seeded(seed))
    assert torch.equal(varied.inputs, starts)
    assert {task for task, _ in listener.steps} <= {WRITING, VARYING}
