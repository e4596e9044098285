"""Token sequences made for a target: which form, from disk the second time, within the budget."""

from __future__ import annotations

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
from gaprune.calibration.inversion.synthesis import ROWS, VARYING, WRITING, sequence_samples
from gaprune.calibration.inversion.token_search import SPREADS, spread_of
from gaprune.config import Settings, make_settings
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, target_from_module


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAPRUNE_CACHE", str(tmp_path))


class Successor(nn.Module):
    """A causal language model of 11 ids that is sure that i is followed by i + 1."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 11), nn.Linear(11, 11, bias=False)
        with torch.no_grad():
            self.embedding.weight.copy_(torch.eye(11))
            self.head.weight.copy_(30 * torch.eye(11).roll(1, 0))

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits `[N, L, 11]`."""
        logits: Tensor = self.head(self.embedding(ids))
        return logits


def causal() -> Target:
    """Return a target that writes."""
    return target_from_module(Successor(), inputs=InputOptions((5,)))


def classifier() -> Target:
    """Return a target that does not, with answers that depend on its ids."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = Attention()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2)
    return target_from_module(model, inputs=InputOptions((5,)))


def starts_of(target: Target) -> GeneratorMixture:
    """Return where sequences begin."""
    return GeneratorMixture(target.inputs, {"zipf-bursts": 1.0}, target.dtype)


def settings_of(**values: Any) -> Settings:
    """Return settings of a small run on impressions."""
    counts = {"calibration_count": 40, "validation_count": 24, "impressions": 30}
    return make_settings({"sparsity": 0.5, "calibration": ("impressions",), **counts, **values})


def test_a_language_model_writes_its_own() -> None:
    """Each token follows from the one before; the provenance says who wrote."""
    plan = make_calibration_set(causal(), settings_of(), seeded())
    assert plan.gradient_inputs is not None
    ids = plan.gradient_inputs.inputs
    assert ids.shape == (30, 5)
    assert ids.dtype == torch.int64
    assert torch.equal(ids[:, 1:], (ids[:, :-1] + 1) % 11)
    assert "30 sequences written by the network" in plan.provenance.sources[0]
    assert plan.provenance.level == "inversion"


def test_another_network_gets_sequences_that_spread_its_answers() -> None:
    """More than those that they started from; the provenance says so."""
    target = classifier()
    made = sequence_samples(target, starts_of(target), 48, seeded(1), None, Listener())
    before = starts_of(target).draw(48, seeded(1))
    answers = (target.model(ids) for ids in (made.inputs, before))
    after, first = (spread_of(one, SPREADS["information"]) for one in answers)
    assert after > first
    assert "48 sequences varied until the answers differ, started from zipf" in made.source
    plan = make_calibration_set(target, settings_of(), seeded())
    assert "30 sequences varied" in plan.provenance.sources[0]
    assert plan.search.inputs.dtype == torch.int64


@pytest.mark.parametrize("make", [causal, classifier])
def test_the_second_time_they_are_read(make: Any, tmp_path: Path) -> None:  # noqa: ANN401
    """The same ids without a step; the generator is left in the same state."""
    first, second, told = seeded(1), seeded(1), Listener()
    target = make()
    made = sequence_samples(target, starts_of(target), 9, first, None, told)
    assert {what for what, _ in told.steps} <= {WRITING, VARYING}
    assert told.steps
    assert len(list((tmp_path / "calibration").iterdir())) == 1
    told.steps.clear()
    read = sequence_samples(make(), starts_of(target), 9, second, None, told)
    assert torch.equal(made.inputs, read.inputs)
    assert made.source == read.source
    assert not told.steps
    assert torch.equal(first.get_state(), second.get_state())
    other = sequence_samples(target, starts_of(target), 9, seeded(2), None, told)
    assert not torch.equal(made.inputs, other.inputs)


def test_a_budget_ends_the_work() -> None:
    """A batch is always written, no second one; where nothing can be varied the starts remain."""
    target, told = causal(), Listener()
    made = sequence_samples(target, starts_of(target), 3 * ROWS, seeded(), 1e-9, told)
    assert len(made.inputs) == ROWS
    assert told.steps == [(WRITING, ROWS)]
    target = classifier()
    kept = sequence_samples(target, starts_of(target), 70, seeded(1), 1e-9, told)
    own = seeded(int(torch.randint(2**62, (), generator=seeded(1))))
    assert torch.equal(kept.inputs, starts_of(target).draw(70, own))


def test_inversion_of_token_ids_is_replaced_too() -> None:
    """With a warning."""
    told = Listener()
    plan = make_calibration_set(causal(), settings_of(calibration=("inversion",)), seeded(), told)
    assert "written by the network" in plan.provenance.sources[0]
    assert "token ids" in told.warnings[0]
