"""`gaprune compare`: rows on stdout and in a folder, progress on stderr, and the way back in."""

from __future__ import annotations

import csv
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import OWN, TINY, Run, tree

import gaprune
from gaprune.comparison import find_methods, known_methods, read_rows

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
        assert set(row["needs"]) == {"data", "labels", "gradients", "training"}
        assert row["actual"] == row["sparsity"]
        assert row["error"] is None
    assert rows == json.loads(Path("rows/rows.json").read_text())
    assert "a factory file may print" in ran.err
    assert re.search(r"^6/6 imp:direct 0\.75: [\d.]+ % in ", ran.err, re.MULTILINE)


def test_a_network_that_prints_does_not_disturb_the_rows(run: Run, place: Path) -> None:
    """Its words are among the progress."""
    code = Path("net.py").read_text().replace("return self.fc2", "print('hello'); return self.fc2")
    Path("chatty.py").write_text(code)
    chatty = ("compare", "chatty.py:make", *OWN[1:], *DATA, *SMALL)
    ran = run(*chatty, *FAST, "--out", "rows", "--json")
    assert len(json.loads(ran.out)) == 6
    assert ran.err.count("hello") > 3


def test_the_table_shows_every_method_and_where_the_files_are(run: Run, place: Path) -> None:
    """A pipe gets lines as wide as they have to be."""
    ran = run(*COMPARE, *FAST, "--methods", "structured-l1,slimming", "--seeds", "0,1")
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[0].startswith("net.py:make: accuracy")
    head = next(line for line in lines if "method" in line)
    assert head.split() == ["method", "needs", "0.5", "0.75", "effort", "seconds"]
    (shown,) = (line for line in lines if line.split()[:1] == ["imp:direct"])
    assert re.search(r"labels, training +[\d.]+ ±[\d.]+ +[\d.]+ ±[\d.]+ +2 epochs", shown)
    assert any(line.startswith("slimming: model: ") and "BatchNorm" in line for line in lines)
    assert lines[-2].startswith("measured on labelled.npz (40 inputs, labelled); median ± half")
    assert lines[-1].startswith("saved in runs/compare-")
    folder = lines[-1].split(":")[0].removeprefix("saved in ")
    named = lines[-1].split(": ")[1].split(", ")
    assert set(named) <= {path.name for path in Path(folder).iterdir()}
    made = ["report.html", "rows.csv", "rows.json", "table.md", "accuracy.svg", "accuracy.png"]
    assert named == made


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
    for name in ("config.toml", "comparison.json"):
        assert Path("a", name).read_text() == Path("b", name).read_text()
    less = run("compare", "--config", "a/config.toml", "--methods", "lamp", "--out", "c", "--json")
    assert {row["method"] for row in json.loads(less.out)} == {"lamp", "imp"}


def test_csv_has_one_line_for_each_row(run: Run, place: Path) -> None:
    """And the needs in columns of their own."""
    run(*COMPARE, *FAST, "--out", "rows")
    with Path("rows/rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(Path("rows/rows.csv").read_text().splitlines()) - 1 == 6
    assert {row["needs_training"] for row in rows} == {"True", "False"}
    assert [row["path"] for row in rows] == ["", "", "", "", "0.5 0.75", "0.5 0.75"]


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


def test_without_labels_the_validation_judges(run: Run, place: Path) -> None:
    """The table says that it is agreement."""
    ran = run("compare", *OWN, *TINY, "--sparsity", "0.5", "--methods", "lamp,erk", "--out", "r")
    assert ran.code == 0
    assert "agreement with the dense network in %" in ran.out
    assert "dense network  " not in ran.out
    assert "measured on generated" in ran.out
    assert {row.accuracy for row in read_rows("r")} == {None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "lmap"), r"methods: .*'lmap'.*'lamp'"),
        (("--methods", ""), "methods: "),
        (("--methods", "none.py:score"), "methods: .*none.py"),
        (("--methods", "net.py:score"), "methods: .*net.py.*'score'"),
        (("--methods", "imp-schedule"), "methods: .*--schedule"),
        (("--sparsity", "0.5,1"), "sparsity: .*0.*1.*1.0"),
        (("--sparsity", "0.5,nan"), "sparsity: .*0.*1"),
        (("--sparsity", "0,0.5"), "sparsity: .*0.*1.*0.0"),
        (("--sparsity", "half"), "sparsity: .*'half'"),
        (("--sparsity", "0.5,0.999"), "sparsity: .*0.999.*0.*240.*0.99"),
        (("--seeds", "-1"), "seeds: must be .*got -1"),
        (("--seeds", "0.5"), "seeds: .*'0.5'"),
        (("--epochs", "0"), "epochs: .*0.*0.0"),
        (("--epochs", "-1"), "epochs: .*0.*-1.0"),
        (("--epochs", "many"), "epochs: .*'many'"),
        (("--clusters", "0"), "clusters: .*1.*0"),
        (("--clusters", "2.5"), "clusters: .*'2.5'"),
        (("--schedule", "0.5"), "schedule: .*'0.5'"),
        (("--schedule", "0.9:1,0.5:1"), "schedule: sparsities must grow"),
        (("--schedule", "0.6:1", "--methods", "imp"), "schedule: .*0.5:1"),
        (("--optimiser", "adma"), "optimiser: .*'adma'"),
        (("--train-learning-rate", "0"), "learning_rate: .*0"),
        (("--decay", "linear"), "decay: .*'linear'"),
        (("--train", "plain.npz"), "train: .*plain.npz"),
        (("--train", "none.npz"), "train: .*none.npz"),
        (("--train", "wide.npz"), "train: .*wide.npz"),
        (("--test", "plain.npz"), "test: .*plain.npz"),
        (("--calibration", "none.npz"), "calibration"),
        (("--objective", "klo"), "objective: unknown name 'klo'"),
        (("--preset", "fast"), "preset: unknown name 'fast'"),
        (("--out", "full"), r"out: .*notes.txt"),
        (("--out", "net.py"), "out: .*net.py"),
        (("--config", "typo.toml"), "config key: .*'sparsiti'"),
        (("--config", "none.toml"), "config: "),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing_behind(
    arguments: tuple[str, ...], message: str, run: Run, place: Path
) -> None:
    """Exit code 2; the message names the argument, what came and the way out."""
    before = tree(place)
    method = () if arguments[0] == "--methods" else ("--methods", "magnitude")
    asked = ("--sparsity", "0.5", "--out", "rows", *method)
    ran = run("compare", *OWN, *SMALL, *asked, *arguments)
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


def test_edited_files_are_another_comparison(run: Run, place: Path) -> None:
    """Rows depend on the code of the network and on the content of calibration inputs."""
    asked = (
        "--sparsity",
        "0.5",
        "--methods",
        "snip",
        "--calibration",
        "plain.npz",
        "--out",
        "rows",
    )
    assert run(*COMPARE, *asked).code == 0
    inputs = np.load("plain.npz")["x"]
    np.savez("plain.npz", x=inputs[::-1])
    # another process: code and files count as they were when this one met them
    ran = subprocess.run(
        [sys.executable, "-m", "gaprune", *COMPARE, *asked],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ran.returncode == 2
    assert 'differs in file plain.npz ("' in ran.stderr


def test_the_list_of_methods_needs_no_target(run: Run, place: Path) -> None:
    """For people and for programs."""
    ran = run("compare", "--list-methods")
    assert ran.code == 0
    for name in known_methods():
        assert re.search(rf"^ *{re.escape(name)} ", ran.out, re.MULTILINE)
    listed = json.loads(run("compare", "--list-methods", "--json").out)
    assert [one["name"] for one in listed] == list(known_methods())
    assert all(one["description"] and one["source"] for one in listed)


def test_quiet_is_quiet(run: Run, place: Path) -> None:
    """No progress; the table is there."""
    ran = run(*COMPARE, *FAST, "--out", "rows", "--quiet")
    assert ran.err in {"a factory file may print\n", ""}  # once in a process
    assert "magnitude" in ran.out


MISSING = """
import sys
sys.modules.update(dict.fromkeys(("matplotlib", "sklearn", "torch_pruning")))  # None: not there
from gaprune.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_without_the_extra_packages_the_rest_goes_on(place: Path) -> None:
    """Rows and a warning say what to install; tables are written, plots are not."""
    names = "clustered,slimming,magnitude"
    asked = ("--sparsity", "0.5", "--methods", names, "--out", "rows", "--json")
    ran = subprocess.run(
        [sys.executable, "-c", MISSING, *COMPARE, *asked],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr
    errors = {row["method"]: row["error"] for row in json.loads(ran.stdout)}
    assert "needs scikit-learn; pip install 'gaprune[compare]'" in errors["clustered"]
    assert "needs torch-pruning; pip install 'gaprune[compare]'" in errors["slimming"]
    assert errors["magnitude"] is None
    assert "no plots: plot: needs matplotlib; pip install 'gaprune[compare]'" in ran.stderr
    names_there = {path.name for path in Path("rows").iterdir()}
    assert {"rows.csv", "rows.json", "table.md"} <= names_there
    assert not {"accuracy.svg", "accuracy.png"} & names_there


def test_importing_gaprune_imports_none_of_the_extras() -> None:
    """They are slow to import, and may be missing."""
    code = (
        "import sys, gaprune; print(gaprune.compare.__name__, "
        "[m for m in ('matplotlib', 'sklearn', 'torch_pruning') if m in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ran.stdout == "compare []\n"


def test_no_public_name_hides_a_module() -> None:
    """Importing a module of `gaprune.comparison` gives the file, not a function of its name."""
    for found in pkgutil.iter_modules(gaprune.comparison.__path__):
        module = importlib.import_module(f"gaprune.comparison.{found.name}")
        assert getattr(gaprune.comparison, found.name) is module
