"""The demonstration compares bits with the checkpoint and shows every method at every sparsity."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from command_line import Run
from comparison_cases import QUICK

from gaprune.callbacks import Observer
from gaprune.cli.demo_run import SPARSITIES, Demo, compare_bits, run_demo, show_demo
from gaprune.config import EVOLVED
from gaprune.errors import GapruneError
from gaprune.formatting import percent


@pytest.fixture(scope="module")
def found() -> Demo:
    """The demonstration with a search of a moment."""
    return run_demo(Observer(), {**QUICK, "initial_criteria": ("magnitude", "lamp")})


def test_every_method_has_a_row_at_every_sparsity(found: Demo) -> None:
    """Baselines and the search, with accuracy and agreement."""
    rows = found.rows()
    methods = [*found.results[0].baselines, EVOLVED]
    assert [(row["sparsity"], row["method"]) for row in rows] == [
        (sparsity, method) for sparsity in SPARSITIES for method in methods
    ]
    assert all(0 <= row["accuracy"] <= 1 and 0 <= row["agreement"] <= 1 for row in rows)


def test_the_table_holds_what_was_measured(found: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    """The dense network first, the search last, magnitude always, and the number of bits."""
    show_demo(found, Path("runs/demo/report.html"))
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines() if line.count("%") == len(SPARSITIES)]
    assert lines[1][:2] == ["dense", "network"]
    assert lines[2][0] == "magnitude"
    assert lines[-1][0] == "gaprune"
    for result in found.results:
        assert percent(result.accuracy) in out
        assert percent(result.baselines["magnitude"].accuracy) in out
    assert f"{found.num_compared:,}" in out
    assert "runs/demo/report.html" in out


def test_the_sparsest_run_is_saved_with_its_report(
    found: Demo, run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a new folder every time, unless nobody wants one."""
    monkeypatch.setattr("gaprune.cli.demo_run.run_demo", lambda *_: found)
    assert "runs/demo/report.html" in run("demo").out
    assert json.loads(run("demo", "--json", "--quiet").out) == found.rows()
    assert "report.html" not in run("demo", "--no-save").out
    assert sorted(path.name for path in Path("runs").iterdir()) == ["demo", "demo-2"]
    record = json.loads(Path("runs/demo/result.json").read_text())
    assert record["accuracy"]["pruned"] == found.results[-1].accuracy
    assert Path("runs/demo/report.html").stat().st_size > 0
    assert tomllib.loads(Path("runs/demo/config.toml").read_text())["sparsity"] == SPARSITIES[-1]


def test_every_value_that_stays_is_compared(found: Demo) -> None:
    """Kept weights and biases, at both sparsities."""
    biases = 250 + 100 + 10
    assert found.num_compared == sum(result.kept + biases for result in found.results)


def test_a_changed_bit_is_found(found: Demo) -> None:
    """The smallest change of one kept weight: its last bit."""
    result = found.results[0]
    name, weight = next(iter(result.target.weights.items()))
    kept = tuple(result.masks[name].nonzero()[0].tolist())
    before = weight[kept].clone()
    weight[kept] = before.nextafter(before + 1)
    try:
        with pytest.raises(GapruneError, match=name):
            compare_bits(result)
    finally:
        weight[kept] = before
    assert compare_bits(result) == result.kept + 360
