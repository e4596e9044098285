"""What `--calibration auto` chooses and why, and the fallback if inversion is impossible."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from batchnorm_targets import Listener, signal_target, vector_net, vector_target
from criterion_networks import Attention
from hypothesis import given
from hypothesis import strategies as st
from search_cases import seeded, tiny_model
from torch import Tensor, nn

from gaprune.calibration.auto import (
    MAX_DIVERGENCE,
    UNTRAINED,
    best_generator_fit,
    choose_auto,
    expand_auto,
    mixture_fitter,
)
from gaprune.calibration.calibration_set import make_calibration_set, requested_data_levels
from gaprune.calibration.domain_fit import FEWEST, domain_fit, information_of
from gaprune.calibration.generators.procedural import GENERATORS
from gaprune.calibration.inversion.batchnorm import InversionOptions
from gaprune.calibration.inversion.mixture_fit import SAMPLE
from gaprune.calibration.weighing import QUICK_INPUTS, WEIGHING, weighing
from gaprune.callbacks import Observer
from gaprune.config import Settings, make_settings
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, target_from_module
from gaprune.records import LOW_FIT
from gaprune.runs.setup import check_settings, resolve_settings

INVERTED = ("inversion", "procedural")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAPRUNE_CACHE", str(tmp_path))
    quick = partial(InversionOptions, steps=3)
    monkeypatch.setattr("gaprune.calibration.calibration_set.InversionOptions", quick)


def settings_of(**values: Any) -> Settings:
    """Return settings of a small run."""
    counts = {"calibration_count": 20, "validation_count": 12, "impressions": 16, "inversions": 10}
    return make_settings({"sparsity": 0.5, **counts, **values})


def vectors(model: nn.Module) -> Target:
    """Return a target of inputs in [0, 1]."""
    return target_from_module(model, inputs=InputOptions(range=(0, 1)))


class Idle(nn.Module):
    """Has a BatchNorm that its forward pass does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.norm = tiny_model(), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        """Classify without the norm."""
        logits: Tensor = self.net(x)
        return logits


class Shut(nn.Module):
    """Passes no gradients to its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = vector_net().train()
        self.net(torch.full((8, 6), 0.9) + 0.01 * torch.randn(8, 6, generator=seeded()))

    def forward(self, x: Tensor) -> Tensor:
        """Classify without a graph."""
        with torch.no_grad():
            logits: Tensor = self.net(x)
        return logits


class Separating(nn.Module):
    """Is confident about the class of every input, and finds all four of them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)
        with torch.no_grad():
            self.fc.weight.copy_(200 * torch.eye(4, 6))
            self.fc.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Return which of four features is the largest, as logits `[N, 4]`."""
        logits: Tensor = self.fc(x)
        return logits


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: vectors(Separating()), "it has no BatchNorm"),
        (lambda: target_from_module(Attention(), inputs=InputOptions((5,))), "token ids"),
        (lambda: vectors(vector_net()), "never seen data"),
        (lambda: vectors(Shut()), "no gradients"),
        (lambda: vector_target(near=True), " by 0.0[012]"),
    ],
)
def test_auto_is_procedural_where_inversion_is_impossible_or_idle(
    make: Callable[[], Target], reason: str
) -> None:
    """The provenance names the reason; there is no warning, and no draw changes."""
    target, told, generators = make(), Listener(), (seeded(5), seeded(5))
    plan = make_calibration_set(target, settings_of(), generators[0], told)
    same = make_calibration_set(target, settings_of(calibration=("procedural",)), generators[1])
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
    assert torch.equal(plan.search.inputs, same.search.inputs)
    assert torch.equal(plan.validation.inputs, same.validation.inputs)
    assert plan.provenance.level == "procedural"
    assert choose_auto(target).calibration == ("procedural",)
    assert re.search(reason, choose_auto(target).reason)
    assert plan.provenance.sources[-1] == f"auto chose procedural: {choose_auto(target).reason}"
    assert not told.phases
    assert not told.warnings


@pytest.mark.parametrize("make", [lambda: vector_target(near=False), signal_target])
def test_auto_inverts_where_every_generator_is_far(make: Callable[[], Target]) -> None:
    """Observer and provenance name the divergence; generated inputs are added."""
    target, told = make(), Listener()
    plan = make_calibration_set(target, settings_of(), seeded(), told)
    assert choose_auto(target).calibration == INVERTED
    assert mixture_fitter(target).fit().divergence > MAX_DIVERGENCE
    assert len(told.phases) == 1
    assert plan.provenance.sources[-1] in told.phases[0]
    assert plan.provenance.level == "inversion"
    assert plan.mixture is not None
    assert plan.gradient_share == 0.5
    assert requested_data_levels(settings_of(), target) == list(INVERTED)


def test_the_network_alone_decides() -> None:
    """Equal networks give equal choices; global randomness is neither used nor changed."""
    reasons = []
    for outside in (1, 2):
        torch.manual_seed(outside)
        state = torch.get_rng_state()
        reasons.append(choose_auto(vector_target(near=False)))
        assert torch.equal(torch.get_rng_state(), state)
    assert reasons[0] == reasons[1]


def test_auto_can_be_combined_with_other_words() -> None:
    """It is replaced in place, and each word stays once."""
    far = vector_target(near=False)
    assert expand_auto(("proxy:a.npz", "auto"), far) == ("proxy:a.npz", *INVERTED)
    assert expand_auto(("auto", "procedural"), far) == INVERTED
    assert expand_auto(("noise",), far) == ("noise",)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (tiny_model, "it has no BatchNorm"),
        (Idle, "none of its BatchNorms"),
    ],
)
def test_impressions_replace_an_impossible_inversion(
    model: Callable[[], nn.Module], reason: str
) -> None:
    """A warning says why; the calibration inputs are those of `--calibration impressions`."""
    target, told = vectors(model()), Listener()
    plan = make_calibration_set(target, settings_of(calibration=("inversion",)), seeded(), told)
    wanted = make_calibration_set(target, settings_of(calibration=("impressions",)), seeded())
    assert len(told.warnings) == 1
    assert re.search(f"{reason}.*impressions", told.warnings[0])
    assert plan.provenance == wanted.provenance
    assert "16 class impressions" in plan.provenance.sources[0]


class Counted(nn.Module):
    """Pools images before its BatchNorm, and counts its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.norm, self.inputs = nn.AdaptiveAvgPool2d(2), nn.BatchNorm2d(1), 0
        self.head = nn.Linear(4, 2)
        with torch.no_grad():
            self.norm.running_mean = torch.full((1,), 0.4)
            for parameter in self.head.parameters():
                parameter.fill_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Count the inputs and classify them."""
        self.inputs += len(x)
        logits: Tensor = self.head(self.norm(self.pool(x)).flatten(1))
        return logits


@pytest.mark.parametrize("limit", ["LARGE_INPUT", "LARGE_MACS", None])
def test_moments_of_generators_are_cached_for_large_inputs_and_networks(
    limit: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second target of the same network then needs one forward pass; small ones measure again."""
    if limit is not None:
        monkeypatch.setattr(f"gaprune.calibration.auto.{limit}", 1)
    sample = FEWEST if limit == "LARGE_MACS" else SAMPLE
    first, second = (
        target_from_module(Counted(), inputs=InputOptions((1, 8, 8), range=(0, 1)))
        for _ in range(2)
    )
    model = second.model
    assert isinstance(model, Counted)
    fit, before = mixture_fitter(first).fit(), model.inputs
    assert mixture_fitter(second).fit() == fit
    if limit is None:
        assert model.inputs - before > sample
    else:
        assert model.inputs - before < sample


def test_an_estimate_does_not_replace_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large network is weighed again after a dry run; the observer hears how far it is."""
    monkeypatch.setattr("gaprune.calibration.auto.LARGE_MACS", 1)
    monkeypatch.setattr("gaprune.calibration.domain_fit.MEASURED_MACS", 1)
    target = target_from_module(Counted(), inputs=InputOptions((1, 8, 8), range=(0, 1)))
    heard: list[tuple[str, float, float | None]] = []

    class Heard(Observer):
        def progress(self, what: str, done: float, total: float | None) -> None:
            heard.append((what, done, total))

    with weighing(Heard(), quick=True):
        estimate = mixture_fitter(target)
    total = QUICK_INPUTS * len(GENERATORS["image"])
    assert heard.pop() == (WEIGHING, total, total)
    with weighing(Heard()):
        measured = mixture_fitter(target)
    assert measured is not estimate
    assert heard[-1][1] == FEWEST * len(GENERATORS["image"])
    assert mixture_fitter(target) is measured


@pytest.mark.parametrize("limit_of_divergence", [0.5, 0.95, 1.05, 100])
def test_an_estimate_chooses_as_the_measurement(
    limit_of_divergence: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Near the limit, a dry run measures as many inputs as a run; else a few inputs are enough."""
    monkeypatch.setattr("gaprune.calibration.domain_fit.MEASURED_MACS", 1)
    target = target_from_module(Counted(), inputs=InputOptions((1, 8, 8), range=(0, 1)))
    limit = limit_of_divergence * mixture_fitter(target).fit().divergence
    monkeypatch.setattr("gaprune.calibration.auto.MAX_DIVERGENCE", limit)
    model = target.model
    assert isinstance(model, Counted)
    before = model.inputs
    with weighing(quick=True):
        estimate = choose_auto(target)
    assert model.inputs - before < 2 * QUICK_INPUTS * len(GENERATORS["image"])
    assert estimate.calibration == choose_auto(target).calibration
    assert (estimate == choose_auto(target)) is (limit_of_divergence != 100)


@pytest.mark.parametrize("make", [tiny_model, Idle])
def test_auto_adds_impressions_where_no_generator_fits(make: Callable[[], nn.Module]) -> None:
    """A classifier without BatchNorm statistics that separates generated inputs a little."""
    target = vectors(make())
    fit = best_generator_fit(target)
    assert fit is not None
    assert UNTRAINED < fit < LOW_FIT
    plan = make_calibration_set(target, settings_of(), seeded())
    assert choose_auto(target).calibration == ("procedural", "impressions")
    assert plan.provenance.level == "inversion"
    assert plan.gradient_inputs is not None
    assert len(plan.gradient_inputs.inputs) == 16
    assert plan.mixture is not None
    # They also validate, from starts that the search does not use.
    assert len(plan.validation.inputs) == 12
    assert plan.validation.source.startswith("12 class impressions")
    assert not any(name in plan.validation.source for name in plan.mixture.shares)
    # Of inputs so far from the domain, decisions count and not their confidence.
    assert resolve_settings(check_settings(settings_of()), target).settings.objective == "scaled-kl"
    stated = settings_of(objective="kl")
    assert resolve_settings(check_settings(stated), target).settings.objective == "kl"


def test_stated_validation_inputs_are_no_impressions() -> None:
    """Also where no generator fits."""
    plan = make_calibration_set(vectors(tiny_model()), settings_of(validation="uniform"), seeded())
    assert plan.validation.source.startswith("generated: uniform")


def test_an_untrained_network_gets_no_impressions() -> None:
    """It separates no inputs, so there is nothing to optimise towards."""
    torch.manual_seed(0)
    target = vectors(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)))
    fit = best_generator_fit(target)
    assert fit is not None
    assert fit < UNTRAINED
    assert choose_auto(target).calibration == ("procedural",)


@pytest.mark.parametrize("outputs", [1, 0])
def test_other_networks_than_classifiers_have_no_domain_fit(outputs: int) -> None:
    """Regressors, and outputs that are no rows of logits."""
    model = nn.Linear(6, 1) if outputs else nn.Sequential(nn.Linear(6, 6), nn.Unflatten(1, (2, 3)))
    assert best_generator_fit(vectors(model)) is None


@given(st.integers(2, 2000), st.integers(2, 500))
def test_the_domain_fit_of_confident_answers_is_one(classes: int, count: int) -> None:
    """Even if fewer inputs are measured than there are classes."""
    outputs = 1000 * torch.eye(classes)[torch.arange(count) % classes]
    information = information_of(outputs)
    assert information is not None
    fit = domain_fit(information, classes, count)
    assert fit <= 1 + 1e-9
    if count % classes == 0 or count <= classes:
        assert fit == pytest.approx(1)
