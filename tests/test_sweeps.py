"""Sweeps on the command line and in Python: how far one number can go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import OWN, Run
from search_cases import seeded, tiny_model

from gaprune.calibration.samples import Samples
from gaprune.comparison.sweeps import SWEEPS, SweepOptions, sweep_target
from gaprune.errors import InputError
from gaprune.masks.supermask import masked_weights
from gaprune.models.target import InputOptions, Target, target_from_module


def case() -> tuple[Target, Samples]:
    """A network and inputs that carry its own classes as labels."""
    target = target_from_module(tiny_model(), inputs=InputOptions(shape=(6,)))
    inputs = torch.rand(200, 6, generator=seeded(1))
    return target, Samples(inputs, target.model(inputs).argmax(1), "a test")


@pytest.mark.parametrize("kind", SWEEPS)
def test_the_best_point_is_the_furthest_within_the_drop(kind: str) -> None:
    """It loses no more than allowed; with no loss allowed at all the mildest point remains."""
    target, held_out = case()
    found = sweep_target(kind, target, held_out, SweepOptions(max_drop=0.1))
    assert found.dense_accuracy == 1.0
    assert found.best in found.rows
    assert found.best is not None
    assert found.best["accuracy"] >= 0.9
    strict = sweep_target(kind, target, held_out, SweepOptions(max_drop=0.0))
    assert strict.best is not None
    assert strict.best["accuracy"] == 1.0


def test_a_threshold_zeroes_what_lies_below_it() -> None:
    """Accuracy and the zeroed fraction of every layer are those of a network zeroed by hand."""
    target, held_out = case()
    row = sweep_target("threshold", target, held_out, SweepOptions(values=(0.7,))).rows[0]
    masks = {name: weight.abs() >= 0.7 for name, weight in target.weights.items()}
    model = target.masked_copy(masks)
    assert held_out.labels is not None
    hits = model(held_out.inputs).argmax(1) == held_out.labels
    assert row["accuracy"] == pytest.approx(float(hits.double().mean()))
    zeros = {
        n: float((w == 0).double().mean()) for n, w in masked_weights(target.weights, masks).items()
    }
    assert row["zeroed"] == pytest.approx(zeros)


def test_clusters_of_a_pruned_network_leave_its_zeros() -> None:
    """With masks fewer bits are stored, and the distinct values are at most clusters a layer."""
    target, held_out = case()
    masks = {name: weight.abs() >= 0.7 for name, weight in target.weights.items()}
    row = sweep_target("clusters", target, held_out, SweepOptions(values=(4,), masks=masks)).rows[0]
    assert row["distinct"] <= 4 * len(masks)


@pytest.mark.parametrize(
    ("over", "kind", "rule"),
    [
        ({"max_drop": 2}, "threshold", "max_drop: .*0.*1"),
        ({"values": (2.5,)}, "clusters", "values: clusters are counted"),
        ({"values": (-1.0,)}, "threshold", "finite magnitudes from 0"),
        ({"masks": {}}, "threshold", "mask: a sweep of thresholds"),
        ({}, "treshold", "did you mean 'threshold'"),
    ],
)
def test_bad_ranges(over: dict[str, object], kind: str, rule: str) -> None:
    """Each is refused with its rule."""
    target, held_out = case()
    with pytest.raises(InputError, match=rule):
        sweep_target(kind, target, held_out, SweepOptions(**over))  # type: ignore[arg-type]


def test_a_sweep_from_the_command_line(run: Run, place: Path) -> None:
    """A table, the furthest point, rows and plots in a new folder."""
    ran = run("sweep", *OWN, "--test", "labelled.npz", "--values", "0,0.1,0.2", "--out", "swept")
    assert ran.code == 0
    assert "furthest" in ran.out
    names = {path.name for path in Path("swept").iterdir()}
    assert names == {"sweep.json", "sweep.svg", "sweep.png"}
    rows = json.loads(Path("swept/sweep.json").read_text())
    assert [row["threshold"] for row in rows] == [0, 0.1, 0.2]


def test_without_labels_the_validation_measures(run: Run, place: Path) -> None:
    """Agreement is reported, accuracy is not; stdout is JSON alone."""
    ran = run("sweep", *OWN, "--by", "clusters", "--values", "4,2", "--json")
    rows = json.loads(ran.out)
    assert [row["clusters"] for row in rows] == [4, 2]
    assert all(row["accuracy"] is None and 0 <= row["agreement"] <= 1 for row in rows)
    assert Path("runs/sweep-net-make").is_dir()


def test_masks_of_a_run_are_clustered(run: Run, place: Path) -> None:
    """`--mask` takes what `gaprune prune` saved."""
    assert run("prune", *OWN, "--sparsity", "0.5", "--method", "magnitude", "--out", "r").code == 0
    ran = run("sweep", *OWN, "--by", "clusters", "--values", "2", "--mask", "r", "--json")
    assert json.loads(ran.out)[0]["distinct"] <= 4


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (("--by", "noise"), "by: unknown name 'noise'"),
        (("--values", "x"), "values: must be numbers"),
        (("--max-drop", "-1"), "max_drop: .*0.*1"),
        (("--out", "full"), "is not empty"),
        (("--mask", "nothing"), "mask: "),
    ],
)
def test_bad_input(run: Run, place: Path, options: tuple[str, ...], rule: str) -> None:
    """Exit code 2, the argument and its rule, and no folder."""
    ran = run("sweep", *OWN, *options)
    assert ran.code == 2
    assert rule in ran.err
    assert not Path("runs").exists()
