"""The benchmark of faults: what it does to a run, and how it shows what came of it."""

from __future__ import annotations

import json

import pytest

from benchmarks import faults
from benchmarks.cluster.trial import Row
from benchmarks.faults import FAULTS, main, show


@pytest.mark.slow
def test_rows_are_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing else on stdout: fault, survived, lost, recover_s."""
    assert main(["--json", "--only", "another model"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["fault"], row["survived"], row["lost"]) == ("resume with another model", True, 0)
    assert 0 < row["recover_s"] < 120


def test_what_is_not_survived_is_marked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit code says so as well; what could not be tried is no failure."""
    monkeypatch.setattr(faults, "undisturbed", lambda _: None)
    for row, code, text in (
        (Row(False, None, None, "it hung"), 1, "| NO |  |  | it hung |"),
        (Row(True, 2, 1.26), 1, "| yes | 2 | 1.3 |  |"),
        (Row(None, None, None, "not allowed"), 0, "| not tried |  |  | not allowed |"),
        (Row(True, 0, 3.0), 0, "| yes | 0 | 3.0 |  |"),
    ):
        monkeypatch.setattr(faults, "FAULTS", {"a fault": lambda _, row=row: row})
        assert main([]) == code
        assert text in capsys.readouterr().out


def test_a_fault_that_is_not_there_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """The message lists those that are."""
    with pytest.raises(SystemExit) as ended:
        main(["--only", "earthquake"])
    assert ended.value.code == 2
    assert "SIGTERM" in capsys.readouterr().err


def test_the_table_has_a_line_for_each() -> None:
    """Below the head."""
    assert len(show(dict.fromkeys(FAULTS, Row(True, 0, 1.0)))) == 2 + len(FAULTS)
