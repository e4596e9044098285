"""The command of the benchmark on real networks, with small networks in their place."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from real_cases import CASES, TINY, open_deadly

from benchmarks.networks import NETWORKS
from benchmarks.real.measure import make_row, settings_of
from benchmarks.real.methods import METHODS
from benchmarks.real.process import in_own_process, peak_mb
from benchmarks.real.report import line, show
from benchmarks.real.rows import Kept, Key, Row
from benchmarks.real_networks import CASES as REAL_CASES
from benchmarks.real_networks import keys_of, main, rows_of
from gaprune.cli.console import stdout
from gaprune.config import make_settings
from gaprune.errors import GapruneError, InputError

MB = 1_000_000


def test_rows_are_printed_as_json_and_made_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One network that works and one that is missing: rows of both, and nothing else on stdout.

    The second time the row is read; the missing network is tried again, once for all its rows.
    """
    arguments = ["--rows", str(tmp_path), "--json", "--method", "lamp"]
    assert main(arguments, CASES) == 0
    printed = capsys.readouterr()
    made, *missing = json.loads(printed.out)
    assert (made["network"], made["sparsity"], made["method"]) == ("tiny", 0.5, "lamp")
    assert made["dense"] == 0.75
    assert 0 <= made["score"] <= 1
    assert [(row["network"], row["sparsity"]) for row in missing] == [
        ("nowhere", 0.5),
        ("nowhere", 0.7),
    ]
    assert {row["score"] for row in missing} == {None}
    assert {row["note"] for row in missing} == {"nowhere: is not installed; pip install nowhere"}
    assert "tiny 0.5 lamp, seed 0: " in printed.err
    assert printed.err.count("nowhere: is not installed") == 1

    assert main([*arguments[:2], "--only", "tiny", "--method", "lamp"], CASES) == 0
    again = capsys.readouterr()
    assert not again.err
    assert "tiny: top-1 on numbers, 80 held out; dense 75.00 %" in again.out


def test_a_row_has_a_process_of_its_own(tmp_path: Path) -> None:
    """It gives the row that is made here, but for time and memory."""
    key = Key("tiny", 0.5, "wanda", 0)
    here = make_row(TINY, key, None, tmp_path)
    there = in_own_process(make_row, TINY, key, None, tmp_path)
    assert there.peak_mb != here.peak_mb
    timing = {"seconds": 0.0, "probe_seconds": 0.0, "peak_mb": 0.0}
    assert replace(there, **timing) == replace(here, **timing)  # type: ignore[arg-type]


def test_a_process_that_is_killed_is_a_note(tmp_path: Path) -> None:
    """The other rows are made all the same."""
    cases = {"deadly": replace(TINY, open=open_deadly)}
    keys = keys_of(cases, [], [], ["lamp"], [0])
    (row,) = rows_of(cases, keys, Kept(tmp_path), None, tmp_path)
    assert row.score is None
    assert row.note == "its process was ended by SIGKILL (out of memory?)"


def test_what_a_function_raises_ends_its_process(capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever nobody foresaw is shown by its traceback."""
    with pytest.raises(GapruneError, match="ended with exit status 1; stderr says more"):
        in_own_process(os.fspath, 3)  # type: ignore[arg-type]
    assert "TypeError" in capfd.readouterr().err


def test_peak_memory_counts_what_was_held() -> None:
    """100 MB that were filled stay in the figure when they are gone."""
    before = peak_mb()
    ballast = torch.ones(int(before + 100) * MB // 4)
    held = peak_mb()
    del ballast
    assert held > before + 90
    assert peak_mb() > held - 5  # the system counts in batches of pages


def test_everything_is_asked_for_unless_something_is_stated() -> None:
    """Networks keep their own sparsities; those that are stated hold for all."""
    keys = keys_of(REAL_CASES, [], [], [], [0])
    assert {key.network for key in keys} == set(NETWORKS)
    assert {key.sparsity for key in keys if key.network == "minilm"} == {0.5, 0.7}
    assert len(keys) == 8 * len(METHODS)
    some = keys_of(REAL_CASES, ["crepe-tiny", "resnet20"], [0.8], ["lamp", "strict"], [1, 2])
    assert len(set(some)) == len(some) == 8
    assert some[0] == Key("resnet20", 0.8, "strict", 1)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--only", "resnet2", "only: unknown name 'resnet2' (did you mean 'resnet20'?)"),
        ("--method", "lamb", "method: unknown name 'lamb' (did you mean 'lamp'?)"),
        ("--sparsity", "1", "sparsity: must be above 0 and below 1, got 1.0"),
        ("--sparsity", "nan", "sparsity: must be above 0 and below 1, got nan"),
    ],
)
def test_wrong_usage_is_one_message(
    option: str, value: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is run and no folder is made."""
    assert main([option, value, "--rows", str(tmp_path / "rows")]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert not printed.out
    assert not (tmp_path / "rows").exists()


def test_a_folder_that_cannot_be_used_is_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file stands in its place."""
    (tmp_path / "file").touch()
    assert main(["--rows", str(tmp_path / "file"), "--only", "tiny"], CASES) == 2
    assert "rows: cannot write to" in capsys.readouterr().err


def test_settings_of_every_row_are_valid() -> None:
    """Each row of each real network is one that the product accepts."""
    for key in keys_of(REAL_CASES, [], [], [], [0]):
        settings = make_settings(settings_of(REAL_CASES[key.network], key))
        assert settings.sparsity == key.sparsity
        assert settings.repair == ("repair" in key.method)
    with pytest.raises(InputError, match="unknown name 'stepz'"):
        make_settings(settings_of(replace(TINY, settings={"stepz": 1}), Key("a", 0.5, "strict", 0)))


def test_tables_show_what_there_is_and_why_something_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A reason is told once, with its rows; cached inputs are marked; seeds show where several."""
    good = Row(
        "net", 0.5, "strict", 0, 0.6, 0.8, 0.7, 75.0, 3.0, cached=True, peak_mb=1234.5,
        needs="inversion", measure="top-1", held_out=1200,
    )  # fmt: skip
    bad = Row("net", 0.5, "repair", 1, note="[no] luck")
    console = stdout()
    console.width = 120
    show([good, bad, replace(bad, method="lamp")], console)
    out = capsys.readouterr().out
    assert "net: top-1, 1,200 held out; dense 80.00 %" in out
    cells = "strict 0.5 60.00 % 75.00 % 70.00 % inversion 1:15* 1,234 0"
    assert cells in [" ".join(text.split()) for text in out.splitlines()]
    assert "not made (repair at 0.5, lamp at 0.5): [no] luck" in out
    assert "* without the time to make the inverted inputs" in out
    assert line(good) == "net 0.5 strict, seed 0: 60.00 % (dense 80.00 %) in 75 s, 1,234 MB"
    assert line(bad) == "net 0.5 repair, seed 1: [no] luck"
