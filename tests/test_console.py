"""Progress on stderr as a bar or as plain lines; tables on stdout."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from gaprune import InputOptions, Result, prune, prune_target
from gaprune.cli.console import Monitor, fitness_sign, seconds_left, stdout
from gaprune.cli.result_table import gain_text, show_result
from gaprune.cli.stop_signals import SignalHandler
from gaprune.config import make_settings
from gaprune.formatting import percent, points
from gaprune.models.target import target_from_module
from gaprune.records import BaselineScore, Generation

COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|9\d)")  # foreground colours, not bold or cursor moves


class Terminal(io.StringIO):
    """A stream that says it is a terminal and keeps what is written to it."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def result() -> Result:
    """A real result of a tiny network whose name looks like markup."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    target = target_from_module(net, inputs=InputOptions(range=(0, 1)), name="[red]net")
    settings = {"sparsity": 0.5, "generations": 1, "steps": 2, "batch": 8, "population": 2}
    counts = {"offspring": 2, "calibration_count": 16, "validation_count": 16}
    return prune_target(target, make_settings({**settings, **counts}))


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make stderr a terminal that knows colours (not in a fixture: pytest's own comes after)."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def generation(number: int) -> Generation:
    """Return a generation that ended a second after the one before it."""
    return Generation(number, 100 * (number + 1), 1.0 + number, -0.5, -1.0, 0.875)


def tell(monitor: Monitor, generations: int = 3) -> None:
    """Report a short run."""
    monitor.phase("calibration", "making inputs")
    monitor.baseline("random", BaselineScore(0.125))
    monitor.baseline("lamp", BaselineScore(0.75))
    monitor.phase("search", "with [brackets]")
    for number in range(generations):
        monitor.generation(generation(number), 10)
    monitor.warning("mind [this]")
    monitor.phase("test", "measuring")


def test_without_a_terminal_every_generation_is_a_plain_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Generation, agreement, loss, speed and time left; stdout stays empty."""
    with Monitor() as monitor:
        tell(monitor)
    out, err = capsys.readouterr()
    assert out == ""
    assert "\x1b" not in err
    scores = "agreement 87.50 %  loss 0.5000 (lower is better)  100 evaluations/s"
    assert err.splitlines() == [
        "calibration: making inputs",
        "best of 2 one-shot masks: lamp, agreement 75.00 %",
        "search: with [brackets]",
        f"generation 0/10 (search)  {scores}",
        f"generation 1/10 (search)  {scores}",
        f"generation 2/10 (search)  {scores}  8.0 s left",
        "warning: mind [this]",
        "test: measuring",
    ]


@pytest.mark.parametrize(
    ("seconds", "phases", "left"),
    [
        # short generations before the search; generations 4 and 5 of 6 are searches
        ((0, 0.5, 1, 5, 9), ("density_search",) * 3 + ("search",) * 2, [None] * 4 + [8.0]),
        # the first generation of a search is long
        ((0, 30, 40, 50, 60), ("search",) * 5, [None, None, 40.0, 30.0, 20.0]),
    ],
)
def test_the_time_left_is_predicted_from_the_second_generation_of_the_search_on(
    seconds: Sequence[float], phases: Sequence[str], left: list[float | None]
) -> None:
    """Not by earlier phases, nor by its first generation, nor without a last generation."""
    history = [
        replace(generation(number), seconds=spent, phase=phase)
        for number, (spent, phase) in enumerate(zip(seconds, phases, strict=True))
    ]
    assert [seconds_left(history[: n + 1], 6) for n in range(5)] == left
    assert seconds_left(history, None) is None


def test_quiet_keeps_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    """Progress is silent, what the user must know is not."""
    with Monitor(quiet=True) as monitor:
        tell(monitor)
    assert capsys.readouterr().err == "warning: mind [this]\n"


@pytest.mark.parametrize(
    ("variable", "value", "moves", "coloured"),
    [("TERM", "xterm", True, True), ("NO_COLOR", "1", True, False), ("TERM", "dumb", False, False)],
)
def test_a_terminal_has_a_live_bar_unless_it_cannot(
    variable: str, value: str, moves: bool, coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NO_COLOR leaves colours out (no-color.org); a dumb terminal gets plain lines."""
    terminal, signals = open_terminal(monkeypatch), SignalHandler()
    monkeypatch.setenv(variable, value)
    with Monitor(signals=signals) as monitor:
        tell(monitor)
    output = terminal.getvalue()
    assert "generation 2/10" in output
    assert "agreement 87.50 %" in output
    assert "mind [this]" in output
    assert ("\x1b[2K" in output) == ("━" in output) == moves
    assert bool(COLOUR.search(output)) == coloured
    assert signals.saving  # the monitor told it of the last phase


def test_the_terminal_is_given_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends the run, the cursor is shown again."""
    terminal = open_terminal(monkeypatch)

    def fail_in_the_search() -> None:
        with Monitor() as monitor:
            tell(monitor, 0)
            monitor.generation(generation(0), 10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_in_the_search()
    shown = terminal.getvalue()
    assert "\x1b[?25l" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_the_summary_is_complete(result: Result, capsys: pytest.CaptureFixture[str]) -> None:
    """Sparsity, counts, every layer and method, the provenance, the gain, the cost."""
    show_result(result, stdout(), verbose=True)
    out, err = capsys.readouterr()
    assert err == ""
    assert "50.00 % of 72 prunable weights; " in out
    assert "Layers of [red]net" in out
    for layer in result.layers:
        assert re.search(rf"{layer.name} +{layer.total} +{layer.kept} ", out)
    assert re.search(rf"evolved +{re.escape(percent(result.validation_agreement))} +–", out)
    for name, score in result.baselines.items():
        assert re.search(rf"{name} +{re.escape(percent(score.agreement))}", out)
    assert all(source in out for source in result.provenance.sources)
    assert result.provenance.validation in out
    assert points(result.gain) in out
    assert f"{result.evaluations:,} evaluations" in out
    assert "test labels" not in out  # there were none
    assert "\x1b" not in out
    first_words = [line.split()[0] for line in out.splitlines() if line.strip()]
    order = [name for name in first_words if name in result.baselines]
    agreements = [result.baselines[name].agreement for name in order]
    assert len(order) == len(result.baselines)
    assert agreements == sorted(agreements, reverse=True)


def test_a_one_shot_method_is_marked_and_has_no_gain(
    result: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing was evolved, so nothing claims to be."""
    show_result(replace(result, method="lamp", stopped="one-shot"), stdout(), verbose=True)
    out = capsys.readouterr().out
    assert "evolved" not in out
    assert "gain" not in out
    assert "one-shot" in out


def test_a_deep_network_is_summed_up(capsys: pytest.CaptureFixture[str]) -> None:
    """Past 40 layers one row holds the rest, and its sums are right."""
    deep = nn.Sequential(*[nn.Linear(*((2, 5) if n % 2 == 0 else (5, 2))) for n in range(45)])
    how: dict[str, Any] = {"method": "magnitude", "scope": "layer", "calibration_count": 16}
    pruned = prune(deep, sparsity=0.7, inputs=InputOptions(range=(0, 1)), **how)
    show_result(pruned, stdout(), verbose=True)
    out = capsys.readouterr().out
    assert "39.weight " in out
    assert "40.weight" not in out
    assert re.search(r"5 more +50 +15 +30\.00 %", out)


def test_a_front_is_a_table(result: Result, capsys: pytest.CaptureFixture[str]) -> None:
    """One row per network on the Pareto front."""
    front = ({"sparsity": 0.5, "validation": 0.875}, {"sparsity": 0.25, "validation": 1.0})
    show_result(replace(result, front=front), stdout())
    out = capsys.readouterr().out
    assert re.search(r"50\.00 % +87\.50 %", out)
    assert re.search(r"25\.00 % +100\.00 %", out)


def test_the_last_line_tells_accuracy_or_agreement(result: Result) -> None:
    """Accuracy of the dense network's with test data, otherwise agreement, and the weights left."""
    left = f"with {percent(round(1 - result.actual_sparsity, 4), None)} of the weights"
    tested = replace(result, accuracy=0.9665, dense_accuracy=0.9735)
    assert gain_text(tested) == f"accuracy 96.65 % of 97.35 % {left}"
    untested = gain_text(replace(result, accuracy=None, dense_accuracy=None))
    assert "accuracy" not in untested
    assert f"agreement {percent(result.validation_agreement)}" in untested
    assert untested.endswith(left)


def test_counted_answers_are_a_score_and_other_objectives_a_loss() -> None:
    """People expect a loss to be above 0 and better if it is low."""
    record = Generation(0, 1, 1.0, best=-0.5, mean=-0.6, validation=0.5)
    assert fitness_sign([record]) == ("loss", -1)
    assert fitness_sign([replace(record, best=0.9)]) == ("score", 1)
