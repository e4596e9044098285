"""`--profile`: a table of where the time of a run went, which changes nothing that is found."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import PRUNE, Run
from fault_tasks import Faulty
from search_cases import tiny_evaluator, tiny_model
from worker_tasks import Echo

from gaprune import InputOptions, Result, prune, resume
from gaprune.config import NEUTRAL
from gaprune.evolution.presets import PRESETS
from gaprune.profiling import (
    LOST,
    OTHER,
    PARTS,
    TRANSPORT,
    WAITING,
    Profile,
    profiled,
    run_profiler,
)
from gaprune.workers import RetryPolicy, WorkerOptions
from gaprune.workers.device import synchronizer
from gaprune.workers.ray_pool import RayWorkers

TINY: dict[str, Any] = {
    "sparsity": 0.6, "generations": 2, "steps": 2, "batch": 8, "population": 3, "offspring": 3,
    "calibration_count": 32, "validation_count": 32, "inputs": InputOptions(range=(0, 1)),
}  # fmt: skip
TASKS = {"vary", "sample", "gradient", "decode", "cache", "mask", "forward", "objective"}
TASKS |= {"validate"}


def outcome(result: Result) -> dict[str, Any]:
    """Return the result of a run without time, workers and profile."""
    record = result.record()
    settings = {key: value for key, value in record["settings"].items() if key not in NEUTRAL}
    masks = {name: mask.tolist() for name, mask in result.masks.items()}
    history = [{**vars(generation), "seconds": 0} for generation in result.history]
    without = {**record, "seconds": 0, "profile": None, "settings": settings}
    return {**without, "masks": masks, "history": history}


def profile_of(result: Result) -> Profile:
    """Return the profile of a run that measured."""
    assert result.profile is not None
    return result.profile


@pytest.mark.parametrize("preset", PRESETS)
def test_a_profile_changes_nothing_that_is_found(preset: str, tmp_path: Path) -> None:
    """Masks, history and figures are those of the run without; the parts are the time it took."""
    torch.manual_seed(0)
    labelled = tmp_path / "labelled.npz"
    settings = {**TINY, "preset": preset}
    if preset == "classic":
        import numpy as np  # noqa: PLC0415 - one case needs a file

        np.savez(labelled, x=torch.rand(40, 6).numpy(), y=torch.arange(40).numpy() % 4)
        settings["calibration"] = (f"labelled:{labelled}",)
    plain = prune(tiny_model(), **settings)
    begin = time.perf_counter()
    measured = prune(tiny_model(), profile=True, **settings)
    took = time.perf_counter() - begin
    assert outcome(measured) == outcome(plain)
    assert plain.profile is plain.record()["profile"] is None
    profile = profile_of(measured)
    assert not profile.workers
    assert measured.seconds * 0.95 <= profile.driver.total.seconds <= took
    gradients = {"sample", "gradient"} if PRESETS[preset].gradient else set()
    assert set(profile.driver) >= (TASKS - {"sample", "gradient"}) | gradients
    assert set(profile.driver) <= set(PARTS)
    assert all(timing.nanoseconds >= 0 for timing in profile.driver.values())


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_workers_measure_what_is_theirs(tmp_path: Path) -> None:
    """Found is what one finds without; parts of tasks are theirs, the others are of this end."""
    model = tiny_model()
    measured = prune(model, workers=2, profile=True, out=tmp_path / "run", **TINY)
    assert outcome(measured) == outcome(prune(model, **TINY))
    profile = profile_of(measured)
    assert profile.worker_count == 2
    assert set(profile.workers) - {LOST} == {*TASKS, "check", "start", TRANSPORT, WAITING, OTHER}
    assert {"calibration", "baselines", "select", "checkpoint", "start", TRANSPORT, WAITING} <= set(
        profile.driver
    )
    assert not set(profile.driver) & (TASKS - {"validate"})  # the figures at the end are made here
    assert all(timing.nanoseconds >= 0 for timing in profile.workers.values())
    bred = 3 * 2  # children in all generations
    assert profile.workers["vary"].calls == bred
    assert profile.workers["gradient"].calls == profile.workers["sample"].calls == 2 * bred
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved["profile"] == profile.record()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_the_time_of_workers_adds_up(tmp_path: Path) -> None:
    """To both of them from start to end: what they worked, what was lost, and what is between."""
    with run_profiler() as profiler:
        assert profiler is not None
        with RayWorkers(
            tiny_evaluator(), WorkerOptions(2, retry_policy=RetryPolicy(first_wait=0.1))
        ) as workers:
            begin = time.monotonic()
            assert workers.run([Echo(index, 0.1) for index in range(6)]) == list(range(6))
            assert workers.run([Faulty("exit", str(tmp_path), 1, Echo(7, 0.1))]) == [7]
            time.sleep(0.3)
            took = time.monotonic() - begin
        profile = profiler.profile
    timings = profile.workers
    assert timings[OTHER].seconds >= 0.69  # a sleep is no named part
    assert timings[TRANSPORT].calls == 7
    assert timings[LOST].calls == 1
    assert timings["start"].calls in (3, 4)  # the one that takes the place may not have come
    assert timings[WAITING].seconds >= 0.3  # at least one, while nobody asked
    opened = profile.driver["start"].seconds + took  # waiting for the first worker is a start
    assert 2 * took <= timings.total.seconds <= 2 * opened
    assert profile.driver[OTHER].seconds >= 0.3
    assert profile.driver[WAITING].seconds >= 0.3


def test_a_resumed_run_has_a_profile_of_what_was_left(tmp_path: Path) -> None:
    """It finds what the whole run found, and makes no calibration inputs and no baselines again."""
    settings = {**TINY, "preset": "black-box"}
    prune(tiny_model(), out=tmp_path / "run", **settings)
    again = resume(tmp_path / "run", model=tiny_model(), generations=4, profile=True)
    assert outcome(again) == outcome(prune(tiny_model(), **{**settings, "generations": 4}))
    assert profile_of(again).driver["select"].calls == 2
    assert profile_of(again).driver["vary"].calls == 2 * 3


def test_the_table_and_the_json_of_a_profile_add_up(run: Run, place: Path) -> None:
    """The table on stderr has a row per part, slowest first; stdout is the record alone."""
    ran = run(*PRUNE, "--out", "run", "--profile", "--json")
    assert ran.code == 0
    profile = json.loads(ran.out)["profile"]
    parts = profile["driver"]["parts"]
    whole = profile["driver"]["seconds"]
    assert sum(part["seconds"] for part in parts.values()) == pytest.approx(whole)
    assert parts["forward"]["calls"] > 0
    assert profile["workers"] is None
    table = ran.err[ran.err.index("Where the time went") :]
    row = re.compile(r"^ +(\w+) +([\d.]+) % +([\d.]+) +([\d,]+|–) +([\d.,]+|–)", re.MULTILINE)
    lines = row.findall(table)
    assert {"load", "calibration", "forward", "select", "checkpoint", "other"} <= {
        line[0] for line in lines
    }
    assert sum(float(line[1]) for line in lines) == pytest.approx(100, abs=0.06 * len(lines))
    seconds = [float(line[2]) for line in lines[:-1]]
    assert seconds == sorted(seconds, reverse=True)
    assert lines[-1][0] == "other"
    again = run("resume", "run", "--generations", "2", "--profile", "--quiet")
    assert "Where the time went" in again.err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU on this machine")
def test_what_a_gpu_still_does_belongs_to_the_part_that_told_it() -> None:
    """A product that returns at once is booked for as long as it takes; found is the same."""
    big = torch.rand(8192, 8192, device="cuda")
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    with run_profiler(synchronize=synchronizer("cuda")) as profiler:
        assert profiler is not None
        with profiled("forward"):
            begin.record()
            for _ in range(20):
                big = (big @ big).clamp(0, 1)
            end.record()
        with profiled("objective"):
            pass
        here = profiler.profile.driver
    took = begin.elapsed_time(end) / 1e3
    assert here["forward"].seconds >= 0.9 * took
    assert here["objective"].seconds < 0.1 * took
    measured = prune(tiny_model(), device="cuda", profile=True, **TINY)
    assert outcome(measured) == outcome(prune(tiny_model(), device="cuda", **TINY))
    assert profile_of(measured).driver["start"].calls == 1
