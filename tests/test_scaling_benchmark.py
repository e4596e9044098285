"""The benchmark of workers, with small searches in place of its own."""

from __future__ import annotations

import json

import pytest

from benchmarks import scaling
from benchmarks.claims import table
from benchmarks.cluster.crowd import Crowd, measure_utilisation
from benchmarks.cluster.memory import measure_memory
from benchmarks.cluster.speed import hardware, measure_black_box
from benchmarks.scaling import CLAIMS, main

SMALL = {
    "target": "mnist-mlp",
    "preset": "black-box",
    "population": 2,
    "offspring": 2,
    "generations": 4,
    "calibration_count": 8,
    "validation_count": 8,
}


@pytest.mark.usefixtures("ray_session")
def test_every_part_measures_what_it_says() -> None:
    """On the Ray that is there; the figures are of their kind, whatever they are here."""
    found = measure_black_box(SMALL)
    assert found["black_box_driver_ms"] > 0
    assert 0 < found["black_box_bytes_per_evaluation"] < 10_000_000
    memory = measure_memory(SMALL, settled=2)
    grown = (memory["memory_growth_driver_mb"], memory["memory_growth_actors_mb"])
    assert memory["memory_growth_mb"] == max(grown) < 100
    assert min(memory["memory_driver_mb"], memory["memory_actor_mb"]) > 50
    busy = measure_utilisation(Crowd(2, each=10, rounds=1))
    assert 0 < busy["utilisation_2"] <= 1
    assert busy["sleeping_driver_ms"] > 0


@pytest.mark.slow
def test_what_the_machine_gains_from_a_second_process() -> None:
    """Not less than half, not more than twice and some jitter."""
    assert 0.5 < hardware(SMALL, rounds=2) < 3


def test_figures_are_one_json_object(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing else on stdout; a bound that is missed makes the exit code 1."""
    good = {"speedup_2": 1.9, "driver_ms": 1.0}
    monkeypatch.setattr(scaling, "PARTS", {"speed": lambda: good, "other": lambda: {"more": 3.0}})
    assert main(["--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert {"cores", "load", "speedup_2", "driver_ms", "more"} == set(figures)
    assert main(["--only", "speed"]) == 0
    assert "more" not in capsys.readouterr().out
    monkeypatch.setattr(scaling, "PARTS", {"speed": lambda: {**good, "speedup_2": 1.5}})
    assert main([]) == 1
    assert "| speedup_2 | 1.5 (missed) | ≥ 1.85 |" in capsys.readouterr().out


def test_what_has_no_bound_is_shown_without_one() -> None:
    """Every figure of the issue is a line of the table."""
    figures = {claim.figure: 1.0 for claim in CLAIMS}
    lines = table(CLAIMS, {**figures, "cores": 2})
    assert "| black_box_driver_ms | 1 |  | the same where it is a whole answer |" in lines
    assert lines[-1] == "cores: 2"
