"""What `--calibration auto` stands for, why, and what is made where inversion is impossible."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from batchnorm_targets import Listener, signal_target, vector_net, vector_target
from criterion_networks import Attention
from search_cases import seeded, tiny_model
from torch import Tensor, nn

from gaprune.calibration.auto import MAX_DIVERGENCE, choose_auto, expand_auto, mixture_fitter
from gaprune.calibration.calibration_set import make_calibration_set, requested_data_levels
from gaprune.calibration.inversion.mixture_fit import SAMPLE
from gaprune.config import Settings, make_settings
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, load_target, target_from_module

INVERTED = ("inversion", "procedural")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAPRUNE_CACHE", str(tmp_path))


def settings_of(**values: Any) -> Settings:
    """Return settings of a small run."""
    counts = {"calibration_count": 40, "validation_count": 24, "impressions": 16, "inversions": 20}
    return make_settings({"sparsity": 0.5, **counts, **values})


def vectors(model: nn.Module) -> Target:
    """Return a target of inputs in [0, 1]."""
    return target_from_module(model, inputs=InputOptions(range=(0, 1)))


def untracked() -> nn.Module:
    """Goes by the batch, and takes a single input too."""
    norm = nn.BatchNorm1d(3, track_running_stats=False)
    return nn.Sequential(
        nn.Linear(6, 12), nn.Unflatten(1, (3, 4)), norm, nn.Flatten(), nn.Linear(12, 3)
    )


class Idle(nn.Module):
    """Has a BatchNorm that takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.norm = tiny_model(), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        """Leave the norm out."""
        logits: Tensor = self.net(x)
        return logits


class Shut(nn.Module):
    """Passes no gradients to its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = vector_net().train()
        self.net(torch.full((8, 6), 0.9) + 0.01 * torch.randn(8, 6, generator=seeded()))

    def forward(self, x: Tensor) -> Tensor:
        """Answer without a graph."""
        with torch.no_grad():
            logits: Tensor = self.net(x)
        return logits


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: vectors(tiny_model()), "it has no BatchNorm$"),
        (lambda: target_from_module(Attention(), inputs=InputOptions((5,))), "token ids"),
        (lambda: vectors(untracked()), "BatchNorm '2' keeps no running statistics"),
        (lambda: vectors(vector_net()), "never seen data"),
        (lambda: vectors(Idle()), "none of its BatchNorms"),
        (lambda: vectors(Shut()), "no gradients"),
        (lambda: vector_target(near=True), " by 0.0[012]"),
    ],
)
def test_auto_is_procedural_where_inversion_is_impossible_or_idle(
    make: Callable[[], Target], reason: str
) -> None:
    """The reason is on the provenance; nobody is disturbed."""
    target, told = make(), Listener()
    plan = make_calibration_set(target, settings_of(), seeded(), told)
    assert plan.provenance.level == "procedural"
    assert choose_auto(target).calibration == ("procedural",)
    assert re.search(reason, choose_auto(target).reason)
    assert plan.provenance.sources[-1] == f"auto chose procedural: {choose_auto(target).reason}"
    assert not told.phases
    assert not told.warnings


@pytest.mark.parametrize("make", [lambda: vector_target(near=False), signal_target])
def test_auto_inverts_where_every_generator_is_far(make: Callable[[], Target]) -> None:
    """Said to the observer and on the provenance, with the figure; generated inputs are beside."""
    target, told = make(), Listener()
    plan = make_calibration_set(target, settings_of(), seeded(), told)
    assert choose_auto(target).calibration == INVERTED
    assert mixture_fitter(target).fit().divergence > MAX_DIVERGENCE
    assert told.phases == [
        f"calibration: auto chose inversion and procedural: {choose_auto(target).reason}"
    ]
    assert plan.provenance.sources[-1] in told.phases[0]
    assert plan.provenance.level == "inversion"
    assert plan.mixture is not None
    assert plan.gradient_share == 0.5
    assert requested_data_levels(settings_of(), target) == list(INVERTED)


def test_digits_need_no_inversion() -> None:
    """The zoo's network with BatchNorm stays procedural, and auto shifts none of its draws."""
    target = load_target("mobile-student")
    after, plans = [], []
    for calibration in (("auto",), ("procedural",)):
        generator = seeded(5)
        plans.append(make_calibration_set(target, settings_of(calibration=calibration), generator))
        after.append(generator.get_state())
    assert torch.equal(*after)
    assert torch.equal(plans[0].search.inputs, plans[1].search.inputs)
    assert torch.equal(plans[0].validation.inputs, plans[1].validation.inputs)
    assert choose_auto(target).calibration == ("procedural",)


def test_the_network_alone_decides() -> None:
    """Twins choose alike, with the same figure, and no global randomness is used or changed."""
    reasons = []
    for outside in (1, 2):
        torch.manual_seed(outside)
        state = torch.get_rng_state()
        reasons.append(choose_auto(vector_target(near=False)))
        assert torch.equal(torch.get_rng_state(), state)
    assert reasons[0] == reasons[1]


def test_auto_stands_beside_other_words() -> None:
    """In its place, and each word once; without it nothing is changed."""
    far = vector_target(near=False)
    assert expand_auto(("proxy:a.npz", "auto"), far) == ("proxy:a.npz", *INVERTED)
    assert expand_auto(("auto", "procedural"), far) == INVERTED
    assert expand_auto(("noise",), far) == ("noise",)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (tiny_model, "it has no BatchNorm"),
        (untracked, "BatchNorm '2' .* track_running_stats=True"),
        (Idle, "none of its BatchNorms"),
    ],
)
def test_what_cannot_be_inverted_gets_impressions(
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
    """Pools large pictures before its BatchNorm, and counts what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.norm, self.shown = nn.AdaptiveAvgPool2d(2), nn.BatchNorm2d(1), 0
        self.head = nn.Linear(4, 2)
        with torch.no_grad():
            self.norm.running_mean = torch.full((1,), 0.4)
            for one in self.head.parameters():
                one.fill_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Count and answer."""
        self.shown += len(x)
        answer: Tensor = self.head(self.norm(self.pool(x)).flatten(1))
        return answer


@pytest.mark.parametrize(("size", "again"), [(182, 1), (16, None)])
def test_large_inputs_are_drawn_once_for_the_choice(size: int, again: int | None) -> None:
    """What generators look like to a network is read from disk; of small ones it is made anew."""
    first, second = (
        target_from_module(Counted(), inputs=InputOptions((1, size, size), range=(0, 1)))
        for _ in range(2)
    )
    model = second.model
    assert isinstance(model, Counted)
    found, before = mixture_fitter(first).fit(), model.shown
    assert mixture_fitter(second).fit() == found
    shown = model.shown - before
    assert shown == again if again else shown > SAMPLE


def test_what_a_costly_network_sees_is_kept_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs may be small where a pass is long: multiply-adds decide too."""
    monkeypatch.setattr("gaprune.calibration.auto.LARGE_MACS", 1)
    first, second = (
        target_from_module(Counted(), inputs=InputOptions((1, 16, 16), range=(0, 1)))
        for _ in range(2)
    )
    found = mixture_fitter(first).fit()
    model = second.model
    assert isinstance(model, Counted)
    before = model.shown
    assert mixture_fitter(second).fit() == found
    assert model.shown - before < SAMPLE
