"""`gaprune compare`: rows on stdout and in a folder, progress on stderr, and the way back in."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import OWN, TINY, Run, tree

from gaprune.comparison import find_methods, known_methods
from gaprune.io.file_hash import content_of

DATA = ("--test", "labelled.npz", "--train", "labelled.npz")
SMALL = (*TINY, "--epochs", "1", "--train-batch", "10")
FAST = ("--sparsity", "0.5,0.75", "--methods", "magnitude,lamp,imp:direct")
COMPARE = ("compare", *OWN, *DATA, *SMALL)
FIELDS = {
    *("target", "sparsity", "method", "seed", "needs", "accuracy", "agreement", "evaluations"),
    *("epochs", "seconds", "actual", "dense_accuracy", "path", "steps", "code", "error", "note"),
}
EXAMPLE = """
def score(network, inputs, density, generator):
    return network.flat.abs()
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a new process."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows without their seconds."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_json_is_a_list_of_rows_and_nothing_else(run: Run, place: Path) -> None:
    """Progress is on stderr, and so is what a factory prints."""
    ran = run(*COMPARE, *FAST, "--out", "rows", "--json")
    assert ran.code == 0
    rows = json.loads(ran.out)
    assert [(row["method"], row["sparsity"]) for row in rows] == [
        (name, sparsity) for name in ("magnitude", "lamp", "imp:direct") for sparsity in (0.5, 0.75)
    ]
    for row in rows:
        assert set(row) == FIELDS
        assert row["target"] == "net.py:make"
        assert set(row["needs"]) == {"data", "labels", "gradients", "training", "changes"}
        assert row["actual"] == row["sparsity"]
        assert row["error"] is None
    assert rows == json.loads(Path("rows/rows.json").read_text())
    assert "a factory file may print" in ran.err
    assert re.search(r"^6/6 imp:direct 0\.75: [\d.]+ % in ", ran.err, re.MULTILINE)


def test_the_table_shows_every_method_and_the_folder(run: Run, place: Path) -> None:
    """Columns, spread over seeds, reasons of failed methods, and the files of the folder."""
    ran = run(*COMPARE, *FAST, "--methods", "structured-l1,slimming", "--seeds", "0,1")
    assert ran.code == 0
    lines = ran.out.splitlines()
    head = next(line for line in lines if "method" in line)
    assert head.split() == ["method", "needs", "0.5", "0.75", "effort", "seconds"]
    (trained,) = (line for line in lines if line.split()[:1] == ["imp:direct"])
    assert re.search(r" +[\d.]+ ±[\d.]+ +[\d.]+ ±[\d.]+ +2 epochs", trained)
    assert any(line.startswith("slimming: ") and "BatchNorm" in line for line in lines)
    assert "labelled.npz (40" in lines[-2]
    (folder,) = Path("runs").glob("compare-*")
    names = ["report.html", "rows.csv", "rows.json", "table.md", "accuracy.svg", "accuracy.png"]
    assert lines[-1].endswith(f"{folder}: {', '.join(names)}")
    assert set(names) <= {path.name for path in folder.iterdir()}


def test_the_same_command_goes_on_and_computes_nothing_again(run: Run, place: Path) -> None:
    """It says how much is there, shows the same table, and leaves the rows alone."""
    first = run(*COMPARE, *FAST, "--out", "rows")
    before = Path("rows/rows.jsonl").read_bytes()
    second = run(*COMPARE, *FAST, "--out", "rows")
    assert second.out == first.out
    assert "rows: 6 of 6 are there already" in second.err
    assert Path("rows/rows.jsonl").read_bytes() == before
    third = run(*COMPARE, *FAST, "--out", "rows", "--seeds", "0,1", "--json")
    assert len(json.loads(third.out)) == 8
    assert Path("rows/rows.jsonl").read_bytes().startswith(before)


def test_the_configuration_repeats_the_comparison(run: Run, place: Path) -> None:
    """Every option is in config.toml, also a schedule; the command line goes before it."""
    Path("own.py").write_text(EXAMPLE)
    stated = (
        *("--sparsity", "0.5,0.75", "--methods", "own.py:score,random", "--seeds", "3,4"),
        *("--schedule", "0.3:1,0.5:0.5,0.75:2", "--clusters", "4", "--optimiser", "sgd"),
        *("--train-learning-rate", "0.05", "--weight-decay", "0.01", "--decay", "cosine"),
        *("--prune-also", "fc1.bias", "--threads-per-worker", "1"),
    )
    first = run(*COMPARE, *stated, "--out", "a", "--json")
    assert first.code == 0, first.err
    rows = json.loads(first.out)
    assert [row["error"] for row in rows] == [None] * len(rows)
    assert {row["method"] for row in rows} == {"own.py:score", "random", "imp"}
    epochs = [row["epochs"] for row in rows if row["method"] == "imp"]
    assert epochs == [1.5, 3.5, 1.5, 3.5]  # of two seeds
    again = run("compare", "--config", "a/config.toml", "--out", "b", "--json")
    assert plain(json.loads(again.out)) == plain(rows)
    assert Path("a/config.toml").read_text() == Path("b/config.toml").read_text()
    identities = [json.loads(Path(folder, "comparison.json").read_text()) for folder in "ab"]
    first_identity, second = (
        {key: content[key] for key in content.keys() - {"files", "sha256"}}  # of rows with times
        for content in identities
    )
    assert first_identity == second
    less = run("compare", "--config", "a/config.toml", "--methods", "lamp", "--out", "c", "--json")
    assert {row["method"] for row in json.loads(less.out)} == {"lamp", "imp"}


@pytest.mark.slow
def test_all_methods_run_and_those_without_data_say_so(run: Run, place: Path) -> None:
    """The default is every method; without training data they go on without."""
    ran = run(
        *("compare", *OWN, "--test", "labelled.npz", *TINY, "--epochs", "0.002"),
        *("--sparsity", "0.5", "--out", "rows", "--json"),
    )
    assert ran.code == 0
    rows = {row["method"]: row for row in json.loads(ran.out)}
    assert set(rows) == {method.name for method in find_methods(("all",))}
    for name, row in rows.items():
        if known_methods()[name].needs.labels:
            assert row["error"].startswith("train: this method needs labelled training data")
            assert row["accuracy"] is row["actual"] is None
        else:
            assert row["error"] is None, name
            assert row["accuracy"] is not None
    assert ran.err.count("train: this method needs labelled training data") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "lmap"), r"methods: .*'lmap'.*'lamp'"),
        (("--methods", "net.py:score"), "methods: .*net.py.*'score'"),
        (("--methods", "imp-schedule"), "methods: .*--schedule"),
        (("--sparsity", "half"), "sparsity: .*'half'"),
        (("--clusters", "2.5"), "clusters: .*'2.5'"),
        (("--schedule", "0.5"), "schedule: .*'0.5'"),
        (("--schedule", "0.6:1", "--methods", "imp"), "schedule: .*0.5:1"),
        (("--train-learning-rate", "0"), "learning_rate: .*0"),
        (("--train", "plain.npz"), "train: .*plain.npz"),
        (("--calibration", "none.npz"), "calibration"),
        (("--out", "net.py"), "out: .*net.py"),
        (("--config", "typo.toml"), "config key: .*'sparsiti'"),
    ],
)
def test_bad_input_exits_with_2_and_writes_nothing(
    arguments: tuple[str, ...], message: str, run: Run, place: Path
) -> None:
    """The error is one line that names the argument and the value."""
    before = tree(place)
    method = () if arguments[0] == "--methods" else ("--methods", "magnitude")
    ran = run("compare", *OWN, *SMALL, "--sparsity", "0.5", "--out", "rows", *method, *arguments)
    assert ran.code == 2
    assert ran.out == ""
    (line,) = (line for line in ran.err.splitlines() if line.startswith("gaprune: error: "))
    assert re.match(f"gaprune: error: {message}", line), line
    assert tree(place) == before


def test_another_comparison_in_the_folder_is_refused_or_thrown_away(run: Run, place: Path) -> None:
    """As the user wants."""
    run(*COMPARE, *FAST, "--out", "rows")
    before = tree(place)
    refused = run(*COMPARE, *FAST, "--epochs", "2", "--out", "rows")
    assert refused.code == 2
    assert "differs in epochs (1.0 there, 2.0 now)" in refused.err
    assert tree(place) == before
    ran = run(*COMPARE, *FAST, "--epochs", "2", "--out", "rows", "--overwrite", "--json")
    assert ran.code == 0
    assert {row["epochs"] for row in json.loads(ran.out)} == {0.0, 2.0, 4.0}
    assert len(Path("rows/rows.jsonl").read_text().splitlines()) == 6


def test_edited_calibration_inputs_are_another_comparison(run: Run, place: Path) -> None:
    """Rows of a file are not resumed after its content has changed."""
    options = ("--sparsity", "0.5", "--methods", "snip", "--calibration", "plain.npz")
    assert run(*COMPARE, *options, "--out", "rows").code == 0
    np.savez("plain.npz", x=np.load("plain.npz")["x"][::-1])
    content_of.cache_clear()  # the content of a file is read once per process
    ran = run(*COMPARE, *options, "--out", "rows")
    assert ran.code == 2
    assert 'plain.npz ("' in ran.err


def test_list_methods_needs_no_target(run: Run, place: Path) -> None:
    """The list is a table, or JSON with a description and a source for each method."""
    ran = run("compare", "--list-methods")
    assert ran.code == 0
    for name in known_methods():
        assert re.search(rf"^ *{re.escape(name)} ", ran.out, re.MULTILINE)
    listed = json.loads(run("compare", "--list-methods", "--json").out)
    assert [method["name"] for method in listed] == list(known_methods())
    assert all(method["description"] and method["source"] for method in listed)


MISSING = """
import sys
sys.modules.update(dict.fromkeys(("matplotlib", "sklearn")))  # None: not there
from gaprune.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_without_the_extra_packages_other_methods_run(place: Path) -> None:
    """Rows and a warning name the extra to install; tables are written, plots are not."""
    names = "clustered,magnitude"
    ran = python(
        "-c", MISSING, *COMPARE, "--sparsity", "0.5", "--out", "rows", "--json", "--methods", names
    )
    assert ran.returncode == 0, ran.stderr
    errors = {row["method"]: row["error"] for row in json.loads(ran.stdout)}
    assert "scikit-learn" in errors["clustered"]
    assert "gaprune[compare]" in errors["clustered"]
    assert errors["magnitude"] is None
    assert "matplotlib" in ran.stderr
    files = {path.name for path in Path("rows").iterdir()}
    assert {"rows.csv", "rows.json", "table.md"} <= files
    assert not {"accuracy.svg", "accuracy.png"} & files
