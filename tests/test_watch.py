"""A run can be watched: by another process, on a terminal, as TensorBoard events, by functions."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from command_line import PRUNE, Run
from comparison_cases import QUICK
from rich.console import Console
from torch import nn

from gaprune import InputOptions, Result, prune
from gaprune.callbacks import Callbacks, Observer, ObserverGroup
from gaprune.cli.console import BARS, LAST, SearchProgress, generation_table, sparkline
from gaprune.cli.tensorboard import Events
from gaprune.errors import GapruneError, InputError
from gaprune.records import Generation
from gaprune.runs.status import ENDED, RUNNING, STOPPED, read_status

if TYPE_CHECKING:
    from started_commands import Command

SEARCH = (*PRUNE, "--preset", "black-box", "--generations", "40", "--offspring", "8")
TINY = {**QUICK, "generations": 3, "preset": "black-box"}


def net() -> nn.Module:
    """Return a network of two layers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def small(out: Path | None = None, **more: Any) -> Result:
    """Prune it."""
    inputs = InputOptions(range=(0, 1))
    return prune(net(), sparsity=0.5, inputs=inputs, out=out, **{**TINY, **more})


def generation(number: int, validation: float = 0.5) -> Generation:
    """Return a generation."""
    return Generation(number, 10 * number, float(number), -0.5, -1.0, validation)


@pytest.mark.slow
def test_a_run_of_another_process_is_watched_until_it_ends(
    start: Callable[..., Command], run: Run, place: Path
) -> None:
    """Every generation is a line, the last one is the result; the run is not touched."""
    command = start(*SEARCH, "--out", "run")
    command.wait_for("generation 2/")
    status = read_status(place / "run")
    assert status.state == RUNNING
    assert status.owner == f"process {command.process.pid}"
    assert status.total == 40
    assert len(status.history) >= 2
    assert not status.record
    ran = run("watch", "run", "--json", "--every", "0.05")
    ended = command.end()
    assert (ran.code, ended.code) == (0, 0), ran.err
    *lines, last = [json.loads(line) for line in ran.out.splitlines()]
    assert [one["generation"] for one in lines] == list(range(41))
    record = json.loads((place / "run" / "result.json").read_text())
    assert last == {"result": record}
    assert lines == [
        json.loads(line) for line in (place / "run" / "history.jsonl").read_text().splitlines()
    ]


@pytest.mark.slow
def test_watching_a_run_that_was_killed_says_how_to_go_on(
    start: Callable[..., Command], run: Run, place: Path
) -> None:
    """What it had is shown, and the exit code is that of a failure."""
    command = start(*SEARCH, "--out", "run")
    command.wait_for("generation 2/")
    command.process.send_signal(signal.SIGKILL)
    command.end()
    status = read_status(place / "run")
    assert status.state == STOPPED
    assert len(status.history) >= 2
    ran = run("watch", "run")
    assert ran.code == 1
    assert "run: stopped" in ran.out
    assert "gaprune resume run" in ran.err


def test_a_run_that_has_ended_is_shown_at_once(run: Run, tmp_path: Path) -> None:
    """With all its generations and what came of it."""
    result = small(tmp_path / "run")
    status = read_status(tmp_path / "run")
    assert status.state == ENDED
    assert status.history == tuple(result.history)
    ran = run("watch", str(tmp_path / "run"))
    assert ran.code == 0
    assert "50.00 %" in ran.out
    assert "ended: generations" in ran.out
    for one in result.history:
        assert f"{abs(one.best):.4f}" in ran.out


def test_a_line_that_is_being_written_is_left_for_later(tmp_path: Path) -> None:
    """A complete line that is no generation is an error."""
    result = small(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    with (tmp_path / "run" / "history.jsonl").open("a") as file:
        file.write('{"generation": 9, "evalu')
        file.flush()
        assert read_status(tmp_path / "run").history == tuple(result.history)
        file.write("nonsense\n")
    with pytest.raises(InputError, match=r"^run: line \d+ of"):
        read_status(tmp_path / "run")


def test_what_is_no_run_cannot_be_watched(run: Run, tmp_path: Path) -> None:
    """The message names the folder."""
    with pytest.raises(InputError, match=r"^run: "):
        read_status(tmp_path / "none")
    ran = run("watch", str(tmp_path))
    assert ran.code == 2
    assert "run: " in ran.err


def test_the_history_on_the_disk_grows_with_the_search(tmp_path: Path) -> None:
    """After every generation it is what the search knows; a resumed one goes on with it."""
    seen: list[list[Generation]] = []

    def compare(record: Generation) -> None:
        there = list(read_status(tmp_path / "run").history)
        assert there[-1] == record
        seen.append(there)
        if record.generation == 2:
            raise RuntimeError("the lights go out")

    with pytest.raises(RuntimeError, match="the lights go out"):
        small(tmp_path / "run", on_generation=compare)
    assert [len(one) for one in seen] == [1, 2, 3]
    assert read_status(tmp_path / "run").state == STOPPED


def test_functions_of_one_s_own_are_called() -> None:
    """With what happened, in order, beside another observer; the masks are those of any run."""
    told: list[tuple[str, object]] = []

    class Beside(Observer):
        def generation(self, record: Generation, total: int | None) -> None:
            told.append(("beside", record))

    calls = Callbacks(
        on_generation=lambda record: told.append(("own", record)),
        on_phase=lambda name, _: told.append(("phase", name)),
        on_baseline=lambda name, score: told.append((name, score.agreement)),
    )
    records: list[Generation] = []
    found = small(observer=ObserverGroup(Beside(), calls), on_generation=records.append)
    assert records == list(found.history)
    assert [one for name, one in told if name == "beside"] == records
    assert [one for name, one in told if name == "own"] == records
    assert [one for name, one in told if name == "phase"][:3] == [
        "calibration",
        "baselines",
        "search",
    ]
    judged = {name: score.agreement for name, score in found.baselines.items()}
    assert judged.items() <= {name: one for name, one in told if name in judged}.items()
    plain = small()
    assert all(torch.equal(found.masks[name], mask) for name, mask in plain.masks.items())


def test_tensorboard_reads_the_events(tmp_path: Path) -> None:
    """Its own reader finds one point per generation, with the figures of the run."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Events(tmp_path / "events") as events:
        found = small(observer=events)
    read = reader.EventAccumulator(str(tmp_path / "events"))
    read.Reload()
    validation = [(one.step, one.value) for one in read.Scalars("validation/agreement")]
    assert validation == [(one.generation, pytest.approx(one.validation)) for one in found.history]
    best = [one.value for one in read.Scalars("fitness/best")]
    assert best == pytest.approx([one.best for one in found.history])
    (lamp,) = read.Scalars("baselines/lamp")
    assert lamp.value == pytest.approx(found.baselines["lamp"].agreement)
    assert "rates/mutation/gaussian" in read.Tags()["scalars"]


def test_the_command_writes_events(place: Path, run: Run) -> None:
    """While it searches, into the folder that was named."""
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    ran = run(*PRUNE, "--no-save", "--quiet", "--tensorboard", "events")
    assert ran.code == 0, ran.err
    assert [path.name.split(".")[1] for path in (place / "events").iterdir()] == ["out"]


def test_without_tensorboard_the_way_out_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is computed."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(GapruneError, match=r"pip install 'gaprune\[tensorboard\]'"):
        Events(tmp_path / "events")
    assert not (tmp_path / "events").exists()


def test_a_folder_that_is_a_file_takes_no_events(tmp_path: Path) -> None:
    """One message, no traceback."""
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    (tmp_path / "file").write_text("")
    with pytest.raises(GapruneError, match="tensorboard: cannot write to"):
        Events(tmp_path / "file")


def test_a_table_shows_the_last_generations(tmp_path: Path) -> None:
    """The newest below; on a terminal it stands above the bar."""
    history = [generation(number, number / 100) for number in range(20)]
    shown = generation_table(history)
    assert shown.row_count == LAST
    console = Console(file=(tmp_path / "screen").open("w"), width=100, force_terminal=True)
    with SearchProgress(console=console, auto_refresh=False) as progress:
        progress.add_task("generation 19", total=20)
        progress.history = tuple(history)
        progress.refresh()
    console.file.close()
    text = (tmp_path / "screen").read_text()
    assert "19.00 %" in text
    assert "11.00 %" not in text
    assert text.index("19.00 %") < text.rindex("generation 19")


def test_a_sparkline_is_as_high_as_its_values() -> None:
    """From the least to the largest, the last ones of many."""
    assert sparkline([]) == ""
    assert sparkline([1, 1]) == BARS[0] * 2
    assert sparkline([0, 1, 0.5]) == f"{BARS[0]}{BARS[-1]}{BARS[4]}"
    assert len(sparkline(list(range(100)), width=10)) == 10
