"""Ctrl-C and SIGTERM at any moment: the best so far is saved, and no process stays behind."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from command_line import OWN, PRUNE, TINY, Ran, Run, fill, tree
from started_commands import Command

from gaprune.cli import main
from gaprune.cli.console import Monitor
from gaprune.cli.stop_signals import SignalHandler
from gaprune.io.run_files import CHECKPOINT, FILES
from gaprune.records import Generation
from gaprune.runs.directory import load_masks

ENDLESS = ("prune", *OWN, "--sparsity", "0.5", *TINY, "--generations", "1000000", "--out", "run")


def assert_saved(ran: Ran, place: Path) -> None:
    """The run folder is complete, holds the best so far, and was shown."""
    assert {path.name for path in (place / "run").iterdir()} == {*FILES, CHECKPOINT}
    record: dict[str, Any] = json.loads((place / "run" / "result.json").read_text())
    assert record["stopped"] == "interrupted"
    assert record["gain"] >= 0
    masks = load_masks(place / "run")
    assert sum(int(mask.count_nonzero()) for mask in masks.values()) == 120
    assert "interrupted" in ran.out
    assert "Traceback" not in ran.err
    assert not [path for path in place.iterdir() if "partial" in path.name]


def test_ctrl_c_saves_the_best_so_far(start: Callable[..., Command], place: Path) -> None:
    """Exit 130 with a complete run folder; no traceback."""
    command = start(*ENDLESS)
    command.wait_for("generation 3/")
    command.process.send_signal(signal.SIGINT)
    ran = command.end()
    assert ran.code == 130
    assert_saved(ran, place)


INTERRUPTED = ("--preset", "black-box", "--objective", "net.py:interrupt", "--generations", "14")


@pytest.fixture(scope="module", params=[(), ("--pareto",)], ids=["one", "front"])
def undisturbed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return options of a search and what it finds if nobody interrupts it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    fill(folder)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.chdir(folder)
        patch.setenv("INTERRUPT_AT", "0")
        assert main((*PRUNE, *request.param, *INTERRUPTED, "--json", "--quiet")) == 0
    return request.param, found(printed.getvalue())


@pytest.mark.parametrize("moment", [1, 13, 24, 41])
def test_at_any_moment_of_the_search_an_interrupt_keeps_the_best(
    moment: int,
    undisturbed: tuple[tuple[str, ...], dict[str, Any]],
    run: Run,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While baselines are scored only the calibration inputs are saved; later there is a result.

    The signal comes from inside the user's objective, at one of its calls. The resumed run ends as
    if nothing had happened.
    """
    monkeypatch.setenv("INTERRUPT_AT", str(moment))
    search, expected = undisturbed
    ran = run(*PRUNE, *search, *INTERRUPTED, "--out", "run", "--json")
    assert ran.code == 130
    assert "gaprune resume run" in ran.err
    if moment > 12:  # fewer baselines need no gradient
        record = json.loads(ran.out)
        assert record["stopped"] == "interrupted"
        assert record["gain"] >= 0
        assert {path.name for path in Path("run").iterdir()} >= set(FILES)
    else:
        assert {path.name for path in Path("run").iterdir()} == {"config.toml", CHECKPOINT}
    assert found(run("resume", "run", "--json").out) == expected


def found(record: str) -> dict[str, Any]:
    """Return what a result says beside its time, and the hashes of files that hold times."""
    content: dict[str, Any] = json.loads(record)
    return {key: content[key] for key in content.keys() - {"seconds", "files", "sha256"}}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes through /proc")
def test_sigterm_with_workers_leaves_no_process_behind(
    start: Callable[..., Command], place: Path
) -> None:
    """Exit 143 with a complete run folder; Ray and its actors are gone."""
    command = start(*ENDLESS, "--workers", "2")
    command.wait_for("generation 3/")
    assert len(command.descendants()) > 2  # the search for processes finds Ray's
    os.killpg(command.process.pid, signal.SIGTERM)  # as systems stop a service: all at once
    ran = command.end()
    assert ran.code == 143
    assert_saved(ran, place)
    deadline = time.monotonic() + 10
    while command.descendants() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not command.descendants()


@pytest.mark.slow
def test_ctrl_c_before_the_search_saves_nothing(start: Callable[..., Command], place: Path) -> None:
    """There is nothing to save yet, and the message says so."""
    before = tree(place)
    command = start("prune", "mnist-cnn", "--sparsity", "0.9", "--out", "run")
    command.wait_for("calibration: ")
    command.process.send_signal(signal.SIGINT)
    ran = command.end()
    assert ran.code == 130
    assert ran.out == ""
    assert "nothing is saved" in ran.err
    assert "Traceback" not in ran.err
    assert tree(place) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_interrupts_and_gives_the_exit_code(
    number: signal.Signals, code: int
) -> None:
    """And afterwards signals are handled as before."""
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    with pytest.raises(SystemExit) as ended, SignalHandler():
        signal.raise_signal(number)
    assert ended.value.code == code
    assert {one: signal.getsignal(one) for one in before} == before


def test_while_results_are_saved_only_the_second_signal_stops(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The first one is answered by a line, and counts for the exit code."""
    with SignalHandler() as signals:
        signals.phase("search")
        signals.phase("test")
        signal.raise_signal(signal.SIGTERM)
        assert signals.exit_code == 143
        assert capfd.readouterr().err.count("finishing") == 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_second_signal_ends_a_search_at_once() -> None:
    """Also while what was found is put together."""
    with SignalHandler() as signals:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signals.exit_code == 143


def test_an_interrupt_that_a_library_swallows_is_raised_again() -> None:
    """The next event of the search ends it."""
    with SignalHandler() as signals:
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        monitor = Monitor(quiet=True, signals=signals)
        with pytest.raises(KeyboardInterrupt):
            monitor.generation(Generation(1, 9, 0.5, best=-0.2, mean=-0.3, validation=0.7), None)
