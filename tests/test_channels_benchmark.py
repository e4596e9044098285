"""The benchmark of whole channels: equal multiply-adds, timed, kept on the disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.channel_methods import METHODS, Case
from benchmarks.channels import main

TINY = {
    "mobile-student": Case(
        0.5,
        8,
        {
            "calibration": ("procedural",),
            "generations": 1,
            "density_search": 0,
            "steps": 1,
            "batch": 8,
            "population": 2,
            "offspring": 1,
            "calibration_count": 16,
            "validation_count": 16,
            "preset": "black-box",
            "objective": "kl",
        },
        rounds=1,
        epochs=0.002,
    ),
}


def test_methods_are_timed_at_equal_multiply_adds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training says so; rows are kept, and the second time they are only read."""
    place = ["--rows", str(tmp_path), "--json", "--runtime", "torch"]
    methods = ["magnitude-structured", "slimming"]
    assert main([*place, "--method", *methods], TINY) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == [one for one in METHODS if one in methods]
    for row in rows:
        assert 0.3 < row["macs"]["kept"] / row["macs"]["dense"] <= 0.5, row["method"]
        for batches in row["latency"].values():
            assert set(batches) == {"1", "64"}
            assert all(one["dense_ms"] > 0 < one["compact_ms"] for one in batches.values())
        assert row["accuracy"]["dense"] > 0.98
        assert 0 <= row["accuracy"]["pruned"] <= 1
        assert (row["rung"], row["needs"][:8]) == (
            ("labelled", "training") if row["method"] == "slimming" else (row["rung"], "nothing")
        )
    kept = (tmp_path / "rows.jsonl").read_text()
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"cut off')
    assert main([*place, "--method", *methods], TINY) == 0
    assert json.loads(capsys.readouterr().out) == rows
    assert (tmp_path / "rows.jsonl").read_text() == kept + '{"cut off'


def test_a_method_without_a_place_says_so_in_its_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slimming needs BatchNorm; nothing else is stopped by that."""
    case = {"mnist-cnn": Case(0.5)}
    assert main(["--rows", str(tmp_path), "--method", "slimming"], case) == 1
    assert "BatchNorm" in capsys.readouterr().out.replace("\n", " ")


def test_unknown_names_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With those that there are."""
    assert main(["--rows", str(tmp_path), "--only", "resnet"], TINY) == 2
    assert "mobile-student" in capsys.readouterr().err
