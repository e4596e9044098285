"""The doctor finds what is broken, says the way out, and exits accordingly."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from gaprune.cli import main
from gaprune.cli.machine_checks import CHECKS, FAIL, OK, Check, check_files, check_ray, run_checks
from gaprune.models.zoo import ZOO, mnist


def test_this_machine_is_examined(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Every check but Ray's, as rows; a machine that runs the tests has nothing broken."""
    assert main(["doctor", "--no-ray", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [name for name in CHECKS if name != "ray"]
    assert all(row["status"] != FAIL and row["finding"] for row in rows)
    found = {row["name"]: row["finding"] for row in rows}
    assert all(name in found["zoo"] for name in ZOO)


def test_a_broken_place_fails_with_its_way_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 1, and the table says what to do."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("a file")
    assert main(["doctor", "--no-ray"]) == 1
    out = capsys.readouterr().out
    assert "fail" in out
    assert "cannot write to runs" in out
    assert "→" in out


def test_a_check_that_raises_has_failed() -> None:
    """The others are made all the same."""

    def broken() -> Check:
        raise OSError("no such device")

    first, second = run_checks(
        {"a": (broken, "buy one"), "b": (lambda: Check("b", OK, "fine"), "")}
    )
    assert first == Check("a", FAIL, "OSError: no such device", "buy one")
    assert second.status == OK


def test_a_damaged_file_is_found(tmp_path: Path) -> None:
    """One flipped bit is enough."""
    content = mnist.TEST_LABELS.read_bytes()
    path = tmp_path / "labels.gz"
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    assert check_files({path: digest}).status == OK
    path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    check = check_files({path: digest})
    assert check.status == FAIL
    assert "labels.gz" in check.finding
    assert check.remedy


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_task_runs_on_a_real_actor() -> None:
    """Ray starts it in another process and brings its answer back."""
    check = check_ray()
    assert check.status == OK, check
    assert "ran a task" in check.finding
