"""Sweeps over thresholds and cluster counts, from Python and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import OWN, Run
from search_cases import seeded, tiny_model

from gaprune.calibration.samples import Samples
from gaprune.comparison.sweeps import SWEEPS, SweepOptions, sweep_target
from gaprune.errors import InputError
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, target_from_module


def case() -> tuple[Target, Samples]:
    """Return a network, and inputs labelled by it."""
    target = target_from_module(tiny_model(), inputs=InputOptions(shape=(6,)))
    inputs = torch.rand(200, 6, generator=seeded(1))
    return target, Samples(inputs, target.model(inputs).argmax(1), "a test")


@pytest.mark.parametrize("kind", SWEEPS)
def test_the_best_point_is_the_last_within_the_drop(kind: str) -> None:
    """Its accuracy falls by at most `max_drop`; with 0 it does not fall."""
    target, held_out = case()
    for max_drop in (0.1, 0.0):
        result = sweep_target(kind, target, held_out, SweepOptions(max_drop=max_drop))
        assert result.dense_accuracy == 1.0
        assert result.best in result.rows
        assert result.best is not None
        assert result.best["accuracy"] >= 1 - max_drop


@pytest.mark.parametrize(
    ("options", "kind", "rule"),
    [
        ({"max_drop": 2}, "threshold", "max_drop: .*0.*1"),
        ({"values": (2.5,)}, "clusters", "values: .*2.5"),
        ({"values": (-1.0,)}, "threshold", "-1.0"),
        ({"masks": {}}, "threshold", "mask: "),
        ({}, "treshold", "'treshold'.*'threshold'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], kind: str, rule: str) -> None:
    """The error names the option."""
    target, held_out = case()
    with pytest.raises(InputError, match=rule):
        sweep_target(kind, target, held_out, SweepOptions(**options))


def test_a_sweep_from_the_command_line(run: Run, place: Path) -> None:
    """A table on stdout; rows and plots in a new folder."""
    ran = run("sweep", *OWN, "--test", "labelled.npz", "--values", "0,0.1,0.2", "--out", "swept")
    assert ran.code == 0
    assert "0.2" in ran.out
    assert {path.name for path in Path("swept").iterdir()} == {
        *("sweep.json", "sweep.svg", "sweep.png")
    }
    rows = json.loads(Path("swept/sweep.json").read_text())
    assert [row["threshold"] for row in rows] == [0, 0.1, 0.2]


def test_clusters_of_a_run_without_labels(run: Run, place: Path) -> None:
    """`--mask` takes the masks that `gaprune prune` wrote; rows have agreement only."""
    assert run("prune", *OWN, "--sparsity", "0.5", "--method", "magnitude", "--out", "r").code == 0
    ran = run("sweep", *OWN, "--by", "clusters", "--values", "4,2", "--mask", "r", "--json")
    rows = json.loads(ran.out)
    assert [row["clusters"] for row in rows] == [4, 2]
    assert all(row["distinct"] <= 2 * row["clusters"] for row in rows)
    assert all(row["accuracy"] is None and 0 <= row["agreement"] <= 1 for row in rows)
    assert Path("runs/sweep-net-make").is_dir()


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (("--by", "noise"), "'noise'"),
        (("--values", "x"), "values: "),
        (("--max-drop", "-1"), "max_drop: "),
        (("--out", "full"), "out: "),
        (("--mask", "nothing"), "mask: "),
    ],
)
def test_bad_input(run: Run, place: Path, options: tuple[str, ...], rule: str) -> None:
    """Exit code 2, the argument, and no folder."""
    ran = run("sweep", *OWN, *options)
    assert ran.code == 2
    assert rule in ran.err
    assert not Path("runs").exists()
