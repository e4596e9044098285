"""The command line: what users type, read, save and repeat."""

from __future__ import annotations

import json
import re
import resource
from pathlib import Path

import pytest
import torch
from command_line import OWN, PRUNE, TINY, Net, Run, tree
from safetensors.torch import load_file

from gaprune.io.run_files import CHECKPOINT, FILES
from gaprune.models.zoo import ZOO
from gaprune.runs.directory import load_masks
from gaprune.runs.job import make_job


def test_a_network_of_ones_own_from_file_to_file(run: Run, place: Path) -> None:
    """Factory and safetensors in, a run folder out: exact budget, kept bits as they were."""
    ran = run(*PRUNE, "--out", "run")
    assert ran.code == 0
    assert "50.00 % of 240 prunable weights; " in ran.out
    assert "a factory file may print" not in ran.out
    assert "generation 1/1" in ran.err
    assert {path.name for path in Path("run").iterdir()} == {*FILES, CHECKPOINT}
    masks, before = load_masks("run"), load_file("net.safetensors")
    after = load_file("run/pruned.safetensors")
    Net().load_state_dict(after)
    assert sum(int(mask.count_nonzero()) for mask in masks.values()) == 120
    for name, weight in before.items():
        kept = masks.get(name, torch.ones_like(weight, dtype=torch.bool))
        assert torch.equal(after[name][kept], weight[kept])
        assert not after[name][~kept].any()


def test_the_config_of_a_run_repeats_it(run: Run, place: Path) -> None:
    """Same masks bit for bit, and the same config again."""
    assert (
        run(*PRUNE, "--out", "first", "--calibration", "noise,plain.npz", "--seed", "3").code == 0
    )
    assert run("prune", "--config", "first/config.toml", "--out", "second", "--quiet").code == 0
    first, second = load_masks("first"), load_masks("second")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert Path("first/config.toml").read_text() == Path("second/config.toml").read_text()


def test_the_command_line_goes_before_the_config(run: Run, place: Path) -> None:
    """And the config before the defaults."""
    Path("c.toml").write_text('sparsity = 0.5\nseed = 7\nmethod = "magnitude"\nrange = [0, 1]\n')
    ran = run("prune", *OWN[:3], "--config", "c.toml", "--sparsity", "0.75", "--json", *TINY)
    record = json.loads(ran.out)
    assert record["sparsity"] == {"asked": 0.75, "actual": 0.75}
    assert (record["seed"], record["method"]) == (7, "magnitude")
    assert record["settings"]["workers"] == 1


def test_json_is_the_record_and_nothing_else(run: Run, place: Path) -> None:
    """Stdout parses as a whole, has the documented keys, and is what `result.json` holds."""
    ran = run(*PRUNE, "--out", "run", "--json", "--test", "labelled.npz")
    record = json.loads(ran.out)
    assert record == json.loads(Path("run/result.json").read_text())
    documented = (
        "schema target weights_sha256 method sparsity layers agreement accuracy baselines "
        "provenance evaluations seconds seed versions"
    )
    assert set(documented.split()) <= set(record)
    assert set(record["sparsity"]) == {"asked", "actual"}
    assert set(record["agreement"]) == {"calibration", "validation"}
    assert set(record["layers"][0]) == {"name", "total", "kept"}
    assert 0 <= record["accuracy"]["pruned"] <= 1
    assert set(record["baselines"]["lamp"]) == {"agreement", "accuracy"}


def test_without_a_name_runs_are_numbered(run: Run, place: Path) -> None:
    """Nothing is overwritten and nothing is lost."""
    for _ in range(2):
        ran = run(*PRUNE, "--method", "lamp", "--quiet")
    assert {path.name for path in Path("runs").iterdir()} == {"net-make-0.5", "net-make-0.5-2"}
    assert re.search(r"→ runs/net-make-0\.5-2/report\.html\n$", ran.out)
    assert all(line.startswith("warning: ") for line in ran.err.splitlines())  # no progress


def test_no_save_writes_nothing(run: Run, place: Path) -> None:
    """The result is shown all the same."""
    before = tree(place)
    ran = run(*PRUNE, "--no-save")
    assert ran.code == 0
    assert "120 kept" in ran.out
    assert "not saved" in ran.out
    assert tree(place) == before


def test_overwrite_replaces_an_earlier_run(run: Run, place: Path) -> None:
    """Only when it is asked for."""
    assert run(*PRUNE, "--method", "lamp", "--out", "run").code == 0
    assert run(*PRUNE, "--method", "random", "--out", "run").code == 2
    assert json.loads(Path("run/result.json").read_text())["method"] == "lamp"
    assert run(*PRUNE, "--method", "random", "--out", "run", "--overwrite").code == 0
    assert json.loads(Path("run/result.json").read_text())["method"] == "random"


def test_calibration_are_named_one_by_one_or_joined_by_commas(place: Path) -> None:
    """A comma inside the path of a file that exists splits nothing."""
    Path("a,b.npz").write_bytes(Path("plain.npz").read_bytes())
    calibration = ["noise,plain.npz", "procedural", "labelled:a,b.npz"]
    job = make_job({"target": "x", "sparsity": 0.5, "calibration": calibration})
    expected = ("noise", "plain.npz", "procedural", "labelled:a,b.npz")
    assert job.settings.calibration == expected
    assert make_job({"target": "x", "sparsity": 0.5, "calibration": expected}) == job


def test_a_users_own_objective_is_used(run: Run, place: Path) -> None:
    """As a black box, by file and function."""
    ran = run(*PRUNE, "--preset", "black-box", "--objective", "net.py:grade", "--no-save", "--json")
    assert json.loads(ran.out)["settings"]["objective"] == "net.py:grade"


def test_several_networks_come_out_of_a_pareto_search(run: Run, place: Path) -> None:
    """The masks of the front are saved, and the record says what each removes."""
    ran = run(*PRUNE, "--pareto", "--out", "run", "--json")
    front = json.loads(ran.out)["front"]
    masks = load_masks("run/front.safetensors")
    for number, point in enumerate(front):
        own = [mask for name, mask in masks.items() if name.startswith(f"{number}/")]
        kept = sum(int(mask.count_nonzero()) for mask in own)
        assert 1 - kept / 240 == pytest.approx(point["sparsity"])


def test_a_failure_of_the_users_network_is_one_line(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 1; the traceback comes on request only."""
    arguments = ("prune", "net.py:make_shy", *OWN[1:], "--sparsity", "0.5", "--no-save", "-q")
    ran = run(*arguments)
    assert ran.code == 1
    assert re.fullmatch(r"a factory .*\ngaprune: error: .*too many of them.*\n", ran.err)
    monkeypatch.setenv("GAPRUNE_DEBUG", "1")
    assert "Traceback" in run(*arguments).err
    monkeypatch.setenv("GAPRUNE_DEBUG", "0")
    assert "Traceback" in run("--debug", *arguments).err


def test_a_full_disk_does_not_lose_the_result(run: Run, place: Path) -> None:
    """It cannot be saved, but it is shown; exit 1."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        ran = run(*PRUNE, "--method", "lamp", "--json", "--out", "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ran.code == 1
    assert json.loads(ran.out)["method"] == "lamp"
    assert "gaprune: error: out: " in ran.err
    assert not Path("run").exists()


def test_the_zoo_lists_every_network(run: Run) -> None:
    """Parameters as torch counts them, accuracy as its checkpoint says."""
    rows = json.loads(run("zoo", "--json").out)
    assert [row["name"] for row in rows] == list(ZOO)
    for row in rows:
        counted = sum(parameter.numel() for parameter in ZOO[row["name"]].factory().parameters())
        assert row["parameters"] == counted
        assert 0 < row["prunable"] <= counted
        assert row["dense_accuracy"] == ZOO[row["name"]].dense_accuracy
    shown = run("zoo").out
    assert all(row["name"] in shown and f"{row['prunable']:,}" in shown for row in rows)
