"""`gaprune compare` stopped at any time: rows stay, and the same command goes on."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import OWN, TINY, Run
from started_commands import Command

from gaprune.comparison import read_rows

COMPARE = (
    *("compare", *OWN, "--test", "labelled.npz", "--train", "labelled.npz", *TINY),
    *("--sparsity", "0.5,0.75", "--train-batch", "10", "--out", "rows"),
)
LONG = (*COMPARE, "--methods", "magnitude,imp:linear", "--epochs", "100000")  # hours


@pytest.mark.parametrize(
    ("number", "code"),
    [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)],
)
def test_a_signal_keeps_the_rows(
    number: signal.Signals, code: int, start: Callable[..., Command], run: Run, place: Path
) -> None:
    """A stopped command can be repeated; while it runs, a second one is refused."""
    command = start(*LONG)
    command.wait_for("2/4 magnitude 0.75: ")
    second = run(*LONG, "--overwrite")
    assert second.code == 2
    assert re.search("error: out: .*rows", second.err)
    command.process.send_signal(number)
    ran = command.end()
    assert ran.code == code
    assert ran.out == ""
    assert "Traceback" not in ran.err
    last = ran.err.splitlines()[-1]
    assert "in rows;" in last
    assert "--overwrite" in last
    rows = Path("rows/rows.jsonl").read_bytes()
    assert [row.method for row in read_rows("rows")] == ["magnitude", "magnitude"]
    assert Path("rows/config.toml").read_text().startswith("# gaprune compare --config")
    again = run(*COMPARE, "--epochs", "100000", "--methods", "magnitude", "--json")
    assert len(json.loads(again.out)) == 2
    assert Path("rows/rows.jsonl").read_bytes() == rows


def test_an_interrupted_search_has_no_row(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run repeats the search from the start."""
    monkeypatch.setenv("INTERRUPT_AT", "40")
    asked = (
        *("compare", *OWN, *TINY, "--preset", "black-box", "--objective", "net.py:interrupt"),
        *("--generations", "90", "--sparsity", "0.5", "--methods", "lamp,evolved"),
        *("--out", "rows", "--json"),
    )
    ran = run(*asked)
    assert ran.code == 130
    assert ran.out == ""
    assert [row.method for row in read_rows("rows")] == ["lamp"]
    assert json.loads(run(*asked).out)[1]["error"] is None


@pytest.mark.slow
def test_a_killed_process_leaves_whole_rows(
    start: Callable[..., Command], run: Run, place: Path
) -> None:
    """After SIGKILL the next run ends with the same rows as an uninterrupted one."""
    names = ("--methods", "magnitude,synflow,imp:direct,random", "--seeds", "0,1")
    command = start(*COMPARE, *names)
    command.wait_for("3/12 ")
    command.process.kill()
    command.end()
    count = len(read_rows("rows"))
    assert count >= 3
    ran = run(*COMPARE, *names, "--json")
    assert ran.code == 0
    assert f"{count} of 12" in ran.err
    whole = run(*COMPARE, *names, "--out", "other", "--json")
    for row, other in zip(json.loads(ran.out), json.loads(whole.out), strict=True):
        assert {**row, "seconds": 0} == {**other, "seconds": 0}
