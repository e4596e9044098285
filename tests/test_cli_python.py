"""Commands and the Python functions of the same names agree; what incomplete runs report."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import OWN, PRUNE, Run
from started_commands import Command
from torch import nn

import gaprune
from gaprune.io.manifest import file_entries, sealed
from gaprune.runs.status import read_status

FORGETFUL = """
from torch import nn

def make():
    norm = nn.BatchNorm1d(8, track_running_stats=False)
    return nn.Sequential(nn.Linear(12, 8), norm, nn.Linear(8, 3))
"""


@pytest.mark.slow
def test_watching_what_keeps_nothing_says_so_at_once(
    start: Callable[..., Command], run: Run, place: Path
) -> None:
    """Instead of waiting in silence; its end is shown all the same."""
    command = start(
        *PRUNE, "--out", "run", "--checkpoint-every", "0", "--generations", "40", "--steps", "20"
    )
    command.wait_for("generation 1/")
    status = read_status(place / "run")
    assert status.silent
    assert status.owner == f"process {command.process.pid}"
    ran = run("watch", "run", "--json", "--every", "0.05")
    assert command.end().code == 0
    assert ran.err.count("--checkpoint-every") == 1
    assert json.loads(ran.out.splitlines()[-1])["result"]["schema"]
    assert not read_status(place / "run").silent


def test_what_a_pattern_counts_is_said(run: Run, place: Path) -> None:
    """The sparsity that was asked for is a part of channels, the one that came out of weights."""
    ran = run(*PRUNE, "--pattern", "channel", "--method", "magnitude", "--out", "run")
    assert ran.code == 0, ran.err
    assert "requested: 50.00 % of the channels" in ran.out
    page = Path("run/report.html").read_text()
    assert re.search(r"50\.0+\W+% of the channels", page)
    assert "requested:" not in run(*PRUNE, "--method", "magnitude", "--no-save").out


def test_the_page_of_a_comparison_cut_short_says_what_is_missing(run: Run, place: Path) -> None:
    """Which methods, and how many of their rows; the whole one says nothing; blocks are blocks."""
    compare = ("compare", *OWN, "--sparsity", "0.5,0.75", "--out", "c", "--pattern", "4x1")
    assert run(*compare, "--methods", "magnitude,lamp", "-q").code == 0
    assert run("report", "c").code == 0
    whole = Path("c/report.html").read_text()
    assert "rows are missing" not in whole
    assert "of the 4x1 blocks of" in whole
    rows = Path("c/rows.jsonl")
    lines = rows.read_text().splitlines(keepends=True)
    others = [line for line in lines if json.loads(line).get("method") != "lamp"]
    assert len(others) == len(lines) - 2
    rows.write_text("".join(others))
    assert run("report", "c").code == 2  # the rows are not those that were listed
    identity = Path("c/comparison.json")
    content = json.loads(identity.read_text())
    listed = file_entries(Path("c"), content["files"])
    identity.write_text(json.dumps(sealed({**content, "files": listed})))
    assert run("report", "c").code == 0
    assert "2 rows are missing: lamp (2)" in Path("c/report.html").read_text()


def test_a_norm_that_refuses_a_single_input_is_bad_input(run: Run, place: Path) -> None:
    """The message names the layer and the way out; it is no unexpected failure."""
    Path("forgetful.py").write_text(FORGETFUL)
    ran = run("prune", "forgetful.py:make", "--sparsity", "0.5", "--range", "0,1", "--no-save")
    assert ran.code == 2
    assert "BatchNorm '1'" in ran.err
    assert "track_running_stats=True" in ran.err


def test_a_sweep_in_python_finds_what_the_command_finds(run: Run, place: Path) -> None:
    """The same points with the same figures."""
    values = "0,0.1,0.2"
    ran = run("sweep", *OWN, "--values", values, "--json", "--out", "s", "-q")
    assert ran.code == 0, ran.err
    target = gaprune.load_target(
        OWN[0], weights=Path(OWN[2]), inputs=gaprune.InputOptions(range=(0, 1))
    )
    result = gaprune.sweep(
        target.model, values=(0.0, 0.1, 0.2), inputs=gaprune.InputOptions(range=(0, 1))
    )
    assert result.rows == json.loads(ran.out)
    with pytest.raises(gaprune.InputError, match=r"by: .*'noise'"):
        gaprune.sweep(nn.Linear(4, 3), "noise", inputs=gaprune.InputOptions(range=(0, 1)))


def test_a_report_in_python_is_that_of_the_command(run: Run, place: Path) -> None:
    """Of a run."""
    assert run(*PRUNE, "--method", "lamp", "--out", "run").code == 0
    page = Path("run/report.html")
    before = page.read_bytes()
    page.unlink()
    assert gaprune.make_report("run") == page.resolve()
    assert page.read_bytes() == before
    with pytest.raises(gaprune.InputError, match="run: "):
        gaprune.make_report("full")


@pytest.mark.parametrize("name", ["prune", "resume", "compare", "sweep", "export", "measure"])
def test_functions_named_as_commands_are_typed(name: str) -> None:
    """Every argument and what comes back."""
    signature = inspect.signature(getattr(gaprune, name))
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter.name
