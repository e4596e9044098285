"""The limit `seconds`: it includes set-up, ends a search anywhere, and leaves a result."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from search_cases import plan_for, seeded, seeds_of, tiny_evaluator, tiny_model, validated

from gaprune import GapruneError, InputOptions, Result, prune, resume
from gaprune.callbacks import Callbacks
from gaprune.evolution.engine import Evolution
from gaprune.evolution.search_plan import SearchLimits
from gaprune.masks.budget import keep_total
from gaprune.models import time_limit
from gaprune.models.time_limit import TimeIsUp, TimeLimit, check_time
from gaprune.workers import SerialWorkers

SMALL: dict[str, Any] = {
    "inputs": InputOptions(range=(0, 1)),
    "sparsity": 0.7,
    "calibration": ("procedural",),
    "calibration_count": 64,
    "validation_count": 64,
    "generations": 3,
    "steps": 3,
    "batch": 16,
    "initial_criteria": ("magnitude", "lamp", "snip"),
}
EVALUATOR = tiny_evaluator()


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Replace the clock of limits by one that a second passes on whenever it is read."""
    clock = SimpleNamespace(start=time.monotonic(), now=time.monotonic())

    def monotonic() -> float:
        clock.now += 1.0
        return float(clock.now)

    monkeypatch.setattr(time_limit, "time", SimpleNamespace(monotonic=monotonic))
    return clock


def same_masks(one: Result, other: Result) -> bool:
    """Compare the masks of two results bit for bit."""
    return all(torch.equal(one.masks[name], other.masks[name]) for name in one.masks)


def test_a_limit_is_checked_before_every_pass_of_its_network() -> None:
    """Only inside its block; a limit without seconds never ends."""
    model, inputs = tiny_model(), torch.rand(1, 6)
    with TimeLimit().active(model):
        model(inputs)
        check_time()
    with pytest.raises(TimeIsUp), TimeLimit(1e-9).active(model):
        model(inputs)
    model(inputs)
    check_time()


def test_tasks_finished_in_time_are_not_lost(ticking: SimpleNamespace) -> None:
    """The exception has their results."""
    tasks = [SimpleNamespace(run=lambda _, number=number: number) for number in range(9)]
    limit = TimeLimit(4)
    with pytest.raises(TimeIsUp) as caught, limit.active(tiny_model()):
        SerialWorkers(EVALUATOR).run(tasks)
    assert list(caught.value.results) == [0, 1, 2]


@pytest.mark.parametrize("seconds", [1, 12, 31, 60, 100])
@pytest.mark.parametrize("preset", ["default", "black-box"])
def test_a_search_ends_inside_a_generation(
    preset: str, seconds: float, ticking: SimpleNamespace
) -> None:
    """With a leader that is no worse than the seeds, whenever the time is over."""
    plan = plan_for(EVALUATOR, preset, limits=SearchLimits(generations=500))
    seeds = seeds_of(EVALUATOR, 60)
    known = validated(seeds, EVALUATOR)
    with TimeLimit(seconds).active(EVALUATOR.network.model):
        result = Evolution(plan, SerialWorkers(EVALUATOR)).run(seeds, known)
    assert result.stopped == "seconds"
    assert result.validation_score.agreement >= max(score.agreement for score in known.values())
    assert int(result.best.mask.count_nonzero()) == 60
    assert ticking.now <= ticking.start + seconds + 5


@pytest.mark.parametrize("seconds", [1, 3, 8, 14, 40, 70])
def test_a_run_whose_time_is_over_has_a_result(
    seconds: float, ticking: SimpleNamespace, tmp_path: Path
) -> None:
    """Even before the first calibration input: then a one-shot mask, and a warning."""
    warnings: list[str] = []
    test = torch.rand(16, 6, generator=seeded(5)), torch.arange(16) % 4
    observer = Callbacks(on_warning=warnings.append)
    result = prune(
        tiny_model(), seconds=seconds, observer=observer, test=test, out=tmp_path / "run", **SMALL
    )
    assert result.stopped == "seconds"
    assert result.kept == keep_total(result.target.layout, 0.7)
    assert result.gain is not None
    assert result.gain >= 0
    assert all(score.accuracy is not None for score in result.baselines.values())
    assert any(text.startswith("seconds: ") for text in warnings) == (not result.evaluations)
    assert result.provenance.samples > 0
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_limit_that_is_not_reached_changes_no_mask() -> None:
    """Bit for bit; nor does one that a resumed run is freed from."""
    assert same_masks(prune(tiny_model(), seconds=1e6, **SMALL), prune(tiny_model(), **SMALL))


def test_a_run_continues_after_the_last_whole_generation(
    ticking: SimpleNamespace, tmp_path: Path
) -> None:
    """With more time it finds the masks of a run without a limit."""
    short = prune(tiny_model(), seconds=110, out=tmp_path / "run", **SMALL)
    assert short.stopped == "seconds"
    assert short.history
    longer = resume(tmp_path / "run", model=tiny_model(), seconds=1e6)
    assert longer.stopped == "generations"
    assert same_masks(longer, prune(tiny_model(), **SMALL))


def test_a_one_shot_method_takes_the_time_it_needs(ticking: SimpleNamespace) -> None:
    """It has nothing better to return."""
    options = {**SMALL, "initial_criteria": None}
    assert prune(tiny_model(), seconds=1, method="lamp", **options).stopped == "one-shot"


def test_max_drop_has_no_result_without_a_search(ticking: SimpleNamespace) -> None:
    """An agreement that was not measured may be below the limit."""
    with pytest.raises(GapruneError, match=r"^seconds: "):
        prune(tiny_model(), seconds=1, max_drop=0.1, **SMALL)
