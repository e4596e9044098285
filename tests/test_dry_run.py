"""`--dry-run` says what a run would do, and does nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Run

from gaprune.config import make_settings
from gaprune.models.target import Target, load_target
from gaprune.runs.dry_run import DryRun, dry_run
from gaprune.runs.prune import prune_target
from gaprune.runs.setup import check_settings

QUICK = {"generations": 2, "steps": 3, "offspring": 4, "population": 4, "calibration_count": 64}


@pytest.fixture(scope="module")
def target() -> Target:
    """A small network of the zoo."""
    return load_target("mnist-mlp")


def foreseen(target: Target, **changes: object) -> DryRun:
    """Return the forecast at sparsity 0.9 with few steps."""
    return dry_run(target, check_settings(make_settings({"sparsity": 0.9, **QUICK, **changes})))


@pytest.mark.slow
def test_it_keeps_what_the_run_keeps(target: Target) -> None:
    """Budget, layers and filled settings are those of the run itself."""
    found = foreseen(target)
    result = prune_target(target, make_settings({"sparsity": 0.9, **QUICK}))
    assert found.keep == result.kept
    assert found.settings.model_dump(mode="json") == result.settings
    assert [name for name, *_ in found.layers] == list(result.masks)
    assert found.total == sum(mask.numel() for mask in result.masks.values())


@pytest.mark.slow
def test_work_adds_up(target: Target) -> None:
    """Twice the generations take twice as long; more workers, less."""
    once, twice = foreseen(target).phases[-1], foreseen(target, generations=4).phases[-1]
    assert (once.generations, once.children, once.steps) == (2, 4, 3)
    assert twice.generations == 4
    found = foreseen(target)
    assert found.search_seconds == pytest.approx(sum(one.seconds for one in found.phases))
    assert found.search_seconds is not None
    assert found.search_seconds >= 2 * 4 * 3 * found.seconds_per["step"]


@pytest.mark.slow
def test_a_limit_in_seconds_bounds_the_search(target: Target) -> None:
    """It takes no longer than that, whatever is planned."""
    assert foreseen(target, seconds=1e-3).search_seconds == 1e-3
    assert (foreseen(target, seconds=1e6).search_seconds or 0) < 1e6


def test_one_criterion_is_no_search(target: Target) -> None:
    """Nothing is timed that will not run."""
    found = foreseen(target, method="magnitude")
    assert (found.phases, dict(found.seconds_per), found.search_seconds) == ((), {}, None)


def test_units_are_counted_where_a_pattern_has_them(target: Target) -> None:
    """Blocks of four are a quarter as many as weights."""
    found = foreseen(target, pattern="4x1")
    assert found.unit == "units of pattern 4x1"
    assert found.units < found.total
    assert found.keep is not None
    assert 0 < found.keep < found.units


@pytest.mark.slow
def test_a_budget_in_work_is_told_in_work(target: Target) -> None:
    """Multiply-adds, of all of them; what a clock decides nobody knows yet."""
    found = foreseen(target, budget="macs")
    assert found.unit == "multiply-adds for one input"
    assert found.units == found.total  # a matrix of its own for every layer, once an input
    assert found.keep == found.units // 10
    assert foreseen(load_target("lenet"), budget="latency", pattern="channel").keep is None


def test_the_command_writes_nothing(run: Run, place: Path) -> None:
    """Not even a folder for runs."""
    before = sorted(place.rglob("*"))
    asked = ("prune", "net.py:make", "--weights", "net.safetensors", "--range", "0,1")
    done = run(*asked, "--sparsity", "0.5", "--dry-run")
    assert done.code == 0, done.err
    assert "nothing was pruned (--dry-run)" in done.out
    record = json.loads(run(*asked, "--sparsity", "0.5", "--dry-run", "--json").out)
    assert record["keep"] * 2 == record["units"] == record["total"]
    assert {one["name"] for one in record["layers"]} == {"fc1.weight", "fc2.weight"}
    after = [one for one in sorted(place.rglob("*")) if "__pycache__" not in str(one)]
    assert after == before


def test_a_large_network_is_estimated_from_a_few_inputs(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far fewer inputs pass than a candidate of the run has; time and memory are scaled up."""
    monkeypatch.setattr("gaprune.runs.dry_run.MEASURED_MACS", 1.0)
    passed: list[int] = []
    hook = target.model.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0])))
    changes = {"calibration": ("blobs",), "calibration_count": 4096, "batch": 4096}
    prediction = foreseen(target, **changes, validation="blobs")
    hook.remove()
    assert max(passed) <= 256  # of the measurement that chooses generators
    assert prediction.settings.calibration_count == 4096
    assert prediction.seconds_per["step"] > 0
    assert prediction.peak_mb > 4096 * 784 * 4 / 1e6
