"""Progress of a long run: what its parts hand on, and what of it is shown."""

from __future__ import annotations

import io
import sys

import pytest
from comparison_cases import RecordingObserver

from gaprune.callbacks import SubrunObserver
from gaprune.cli.console import Monitor
from gaprune.records import BaselineScore, Generation


class Terminal(io.StringIO):
    """A stream that says it is a terminal and keeps what is written to it."""

    def isatty(self) -> bool:
        return True


def test_a_part_hands_on_progress_under_its_name() -> None:
    """Generations as a count, with their end where it is known; phases and baselines not at all."""
    observer = RecordingObserver()
    part = SubrunObserver(observer, "evolved 0.9")
    part.phase("search", "memetic")
    part.baseline("lamp", BaselineScore(0.5))
    part.generation(Generation(2, 100, 1.0, -0.5, -1.0, 0.875), 8)
    part.generation(Generation(3, 100, 1.0, -0.5, -1.0, 0.875), None)
    part.progress("impressions", 5, 10)
    assert observer.updates == [
        ("evolved 0.9, generation", 2, 8),
        ("evolved 0.9, generation", 3, None),
        ("evolved 0.9, impressions", 5, 10),
    ]


def test_parts_that_share_what_was_said_warn_once() -> None:
    """A warning that all seeds would give is given by the first."""
    observer, said = RecordingObserver(), set[str]()
    SubrunObserver(observer, "evolved 0.9", said).warning("no gradient")
    SubrunObserver(observer, "evolved 0.9, seed 1", said).warning("no gradient")
    SubrunObserver(observer, "evolved 0.9, seed 1", said).warning("something else")
    SubrunObserver(observer, "alone").warning("no gradient")
    assert observer.warnings == [
        "evolved 0.9: no gradient",
        "evolved 0.9, seed 1: something else",
        "alone: no gradient",
    ]


def test_a_pipe_gets_a_line_of_progress_only_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """None just after another line, one after a while; quiet none at all."""
    with Monitor() as monitor, Monitor(quiet=True) as quiet:
        monitor.progress("imp:linear, epoch", 1, 13)
        assert capsys.readouterr().err == ""
        monkeypatch.setattr("gaprune.cli.console.LINE_INTERVAL", -1.0)
        monitor.progress("edge-popup 0.9", 0, None)
        monitor.progress("imp:linear, epoch", 2.5, 13)
        monitor.progress("evolved, generation", 7, None)
        quiet.progress("imp:linear, epoch", 3, 13)
    assert capsys.readouterr().err.splitlines() == [
        "edge-popup 0.9: begins",
        "imp:linear, epoch: 2.5 of 13",
        "evolved, generation: 7",
    ]


def test_a_terminal_has_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the part; the line of a result takes its place."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with Monitor() as monitor:
        monitor.progress("imp:linear, epoch", 3, 13)
        monitor.progress("imp:linear, epoch", 13, 13)
        monitor.stop_bar()
        monitor.say("1/4 imp:linear")
    shown = stream.getvalue()
    assert "imp:linear, epoch" in shown
    assert "3 of 13" in shown
    last_bar, result = shown.rindex("13 of 13"), shown.rindex("1/4 imp:linear")
    assert "\x1b[2K" in shown[last_bar:result]  # the line of the bar is erased in between
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")  # the cursor is back
