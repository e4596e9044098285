"""The command line: what users type, read, save, interrupt and get wrong."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gaprune.cli import main
from gaprune.cli.interrupts import Interrupts
from gaprune.config import Settings
from gaprune.job import make_job
from gaprune.run_directory import FILES, load_masks
from gaprune.zoo import ZOO

NETWORK = """
import torch
from torch import nn

print("a factory file may print")

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.fc2(self.fc1(x).relu())

class Shy(Net):
    def forward(self, x):
        if len(x) > 2:
            raise RuntimeError("too many of them")
        return super().forward(x)

def make():
    return Net()

def make_shy():
    return Shy()

calls = 0

def interrupt(outputs, teacher, labels):
    global calls
    calls += 1
    if calls == int(os.environ["INTERRUPT_AT"]):
        os.kill(os.getpid(), signal.SIGINT)
    return grade(outputs, teacher, labels)

def grade(outputs, teacher, labels):
    return -(outputs - teacher).abs().mean()
"""
TINY = (
    *("--generations", "1", "--steps", "2", "--batch", "8", "--population", "2"),
    *("--offspring", "2", "--probe-count", "32", "--guard-count", "32"),
)
OWN = ("net.py:make", "--weights", "net.safetensors", "--range", "0,1")
PRUNE = ("prune", *OWN, "--sparsity", "0.5", *TINY)


class Ran(NamedTuple):
    """What one command did."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


class Net(nn.Module):
    """The network of `NETWORK`, to load results into."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits `[N, 3]`."""
        out: Tensor = self.fc2(self.fc1(inputs).relu())
        return out


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process."""

    def call(*arguments: str) -> Ran:
        capsys.readouterr()
        code = main(arguments)
        return Ran(code, *capsys.readouterr())

    return call


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a network, its weights, and some inputs with labels."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    (tmp_path / "net.py").write_text(NETWORK)
    save_file(Net().state_dict(), tmp_path / "net.safetensors")
    numbers = np.random.default_rng(0)
    inputs = numbers.random((40, 12), dtype=np.float32)
    labels = numbers.integers(0, 3, 40)
    np.savez(tmp_path / "labelled.npz", x=inputs, y=labels)
    np.savez(tmp_path / "plain.npz", x=inputs)
    np.savez(tmp_path / "wide.npz", x=inputs[:, :7])
    np.savez(tmp_path / "no_rows.npz", x=inputs[:0])
    np.savez(tmp_path / "text.npz", x=np.full((4, 12), "a"))
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "typo.toml").write_text("sparsiti = 0.5\n")
    (tmp_path / "broken.toml").write_text("sparsity = \n")
    (tmp_path / "wrong.toml").write_text("target = 'net.py:make'\nsparsity = 0.5\nseed = 'x'\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    return tmp_path


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return everything below a folder but Python's caches: path → content."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


def test_a_network_of_ones_own_from_file_to_file(run: Run, place: Path) -> None:
    """Factory and safetensors in, a run folder out: exact budget, kept bits as they were."""
    ran = run(*PRUNE, "--out", "run")
    assert ran.code == 0
    assert "50.00 % of the 240 weights removed, 120 kept" in ran.out
    assert "a factory file may print" not in ran.out
    assert "generation 1/1" in ran.err
    assert {path.name for path in Path("run").iterdir()} == set(FILES)
    masks, before = load_masks("run"), load_file("net.safetensors")
    after = load_file("run/pruned.safetensors")
    Net().load_state_dict(after)
    assert sum(int(mask.count_nonzero()) for mask in masks.values()) == 120
    for name, weight in before.items():
        kept = masks.get(name, torch.ones_like(weight, dtype=torch.bool))
        assert torch.equal(after[name][kept], weight[kept])
        assert not after[name][~kept].any()


def test_the_config_of_a_run_repeats_it(run: Run, place: Path) -> None:
    """Same masks bit for bit, and the same config again."""
    assert run(*PRUNE, "--out", "first", "--probes", "noise,plain.npz", "--seed", "3").code == 0
    assert run("prune", "--config", "first/config.toml", "--out", "second", "--quiet").code == 0
    first, second = load_masks("first"), load_masks("second")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert Path("first/config.toml").read_text() == Path("second/config.toml").read_text()


def test_the_command_line_goes_before_the_config(run: Run, place: Path) -> None:
    """And the config before the defaults."""
    Path("c.toml").write_text('sparsity = 0.5\nseed = 7\nmethod = "magnitude"\nrange = [0, 1]\n')
    ran = run("prune", *OWN[:3], "--config", "c.toml", "--sparsity", "0.75", "--json", *TINY)
    record = json.loads(ran.out)
    assert record["sparsity"] == {"asked": 0.75, "actual": 0.75}
    assert (record["seed"], record["method"]) == (7, "magnitude")
    assert record["settings"]["workers"] == 1


def test_json_is_the_record_and_nothing_else(run: Run, place: Path) -> None:
    """Stdout parses as a whole, has the documented keys, and is what `result.json` holds."""
    ran = run(*PRUNE, "--out", "run", "--json", "--test", "labelled.npz")
    record = json.loads(ran.out)
    assert record == json.loads(Path("run/result.json").read_text())
    documented = (
        "schema target weights_sha256 method sparsity layers agreement accuracy baselines receipt "
        "evaluations seconds seed versions"
    )
    assert set(documented.split()) <= set(record)
    assert set(record["sparsity"]) == {"asked", "actual"}
    assert set(record["agreement"]) == {"search", "guard"}
    assert set(record["layers"][0]) == {"name", "total", "kept"}
    assert 0 <= record["accuracy"]["pruned"] <= 1
    assert set(record["baselines"]["lamp"]) == {"agreement", "accuracy"}


def test_without_a_name_runs_are_numbered(run: Run, place: Path) -> None:
    """Nothing is overwritten and nothing is lost."""
    for _ in range(2):
        ran = run(*PRUNE, "--method", "lamp", "--quiet")
    assert {path.name for path in Path("runs").iterdir()} == {"net-make-0.5", "net-make-0.5-2"}
    assert re.search(r"saved in .*runs/net-make-0\.5-2\n$", ran.out)
    assert ran.err == ""


def test_no_save_writes_nothing(run: Run, place: Path) -> None:
    """The result is shown all the same."""
    before = tree(place)
    ran = run(*PRUNE, "--no-save")
    assert ran.code == 0
    assert "120 kept" in ran.out
    assert "not saved" in ran.out
    assert tree(place) == before


def test_overwrite_replaces_an_earlier_run(run: Run, place: Path) -> None:
    """Only when it is asked for."""
    assert run(*PRUNE, "--method", "lamp", "--out", "run").code == 0
    assert run(*PRUNE, "--method", "random", "--out", "run").code == 2
    assert json.loads(Path("run/result.json").read_text())["method"] == "lamp"
    assert run(*PRUNE, "--method", "random", "--out", "run", "--overwrite").code == 0
    assert json.loads(Path("run/result.json").read_text())["method"] == "random"


def test_probes_are_named_one_by_one_or_joined_by_commas(place: Path) -> None:
    """A comma inside the path of a file that exists splits nothing."""
    Path("a,b.npz").write_bytes(Path("plain.npz").read_bytes())
    probes = ["noise,plain.npz", "procedural", "labelled:a,b.npz"]
    job = make_job({"target": "x", "sparsity": 0.5, "probes": probes})
    expected = ("noise", "plain.npz", "procedural", "labelled:a,b.npz")
    assert job.settings.probes == expected
    assert make_job({"target": "x", "sparsity": 0.5, "probes": expected}) == job


def test_a_users_own_objective_is_used(run: Run, place: Path) -> None:
    """As a black box, by file and function."""
    ran = run(*PRUNE, "--preset", "black-box", "--objective", "net.py:grade", "--no-save", "--json")
    assert json.loads(ran.out)["settings"]["objective"] == "net.py:grade"


def test_several_networks_come_out_of_a_pareto_search(run: Run, place: Path) -> None:
    """The masks of the front are saved, and the record says what each removes."""
    ran = run(*PRUNE, "--pareto", "--out", "run", "--json")
    front = json.loads(ran.out)["front"]
    masks = load_masks("run/front.safetensors")
    for number, point in enumerate(front):
        own = [mask for name, mask in masks.items() if name.startswith(f"{number}/")]
        kept = sum(int(mask.count_nonzero()) for mask in own)
        assert 1 - kept / 240 == pytest.approx(point["sparsity"])


# What is wrong → the arguments, and what the message must say: the argument, and what came.
BAD: dict[str, tuple[tuple[str, ...], str]] = {
    **{
        f"sparsity {value}": ((*OWN, "--sparsity", value), rf"sparsity: .*got '?{value}'?$")
        for value in ("0.0", "1.0", "1.5", "-0.1", "nan", "inf", "abc", "50%")
    },
    "no sparsity": (OWN, "sparsity: none given; pass --sparsity"),
    "no target": (("--sparsity", "0.5"), "target: none given; .*mnist-mlp"),
    "unknown target": (("mnist-mpl", "--sparsity", "0.5"), "target: .*'mnist-mlp'"),
    "layer emptied": (
        (*PRUNE[1:], "--scope", "layer", "--sparsity", "0.99"),
        "layer 'fc2.weight'",
    ),
    "nothing kept": ((*PRUNE[1:], "--sparsity", "0.9999"), "sparsity: .*at most"),
    "method": ((*PRUNE[1:], "--method", "lmap"), "method: .*'lmap'.*'lamp'.*synflow"),
    "preset": ((*PRUNE[1:], "--preset", "fast"), "preset: .*'fast'.*black-box"),
    "scope": ((*PRUNE[1:], "--scope", "local"), "scope: .*'local'.*allocated"),
    "probe": ((*PRUNE[1:], "--probes", "nois"), "probes: .*'nois'.*'noise'"),
    "guard": ((*PRUNE[1:], "--guard", "nois"), "guard: .*'nois'.*'noise'"),
    "objective": ((*PRUNE[1:], "--objective", "klo"), "objective: .*'klo'.*'kl'"),
    "layer name": ((*PRUNE[1:], "--prune-also", "fc3.bias"), "fc3.bias"),
    "input kind": ((*PRUNE[1:], "--input-kind", "sound"), "input kind: .*'sound'.*signal"),
    "input shape": ((*PRUNE[1:], "--input-shape", "3,x"), "input_shape: .*got '3,x'"),
    "half a pixel": ((*PRUNE[1:], "--input-shape", "3.5"), "input_shape: must be whole"),
    "other shape": ((*PRUNE[1:], "--input-shape", "13"), "input shape: .*13.*--input-shape"),
    "range": ((*PRUNE[1:], "--range", "1"), "range: must be two numbers"),
    "range reversed": ((*PRUNE[1:], "--range", "1,-1"), "range: the low end"),
    "std zero": ((*OWN[:3], "--sparsity", "0.5", "--std", "0"), "std: must be above 0"),
    "workers": ((*PRUNE[1:], "--workers", "0"), "workers: .*greater than or equal to 1, got '0'"),
    "seed": ((*PRUNE[1:], "--seed", "1.5"), "seed: .*integer.*got '1.5'"),
    "probe shape": ((*PRUNE[1:], "--probes", "wide.npz"), "probes: .*wide.npz.*12"),
    "probe dtype": ((*PRUNE[1:], "--probes", "text.npz"), "probes: .*text.npz.*must hold numbers"),
    "probe file without rows": ((*PRUNE[1:], "--probes", "no_rows.npz"), "probes: .*no_rows.npz"),
    "probe file without bytes": ((*PRUNE[1:], "--probes", "empty.npz"), "probes: .*empty.npz"),
    "probe file missing": ((*PRUNE[1:], "--probes", "none.npz"), "probes: .*none.npz"),
    "probes without labels": (
        (*PRUNE[1:], "--probes", "labelled:plain.npz"),
        "probes: plain.npz holds no labels",
    ),
    "test without labels": ((*PRUNE[1:], "--test", "plain.npz"), "test: plain.npz holds no labels"),
    "test of another shape": ((*PRUNE[1:], "--test", "wide.npz"), "test: .*wide.npz"),
    "config key": ((*PRUNE[1:], "--config", "typo.toml"), "'sparsiti'.*'sparsity'.*input_shape"),
    "config missing": ((*PRUNE[1:], "--config", "none.toml"), "config: cannot read none.toml"),
    "config not TOML": ((*PRUNE[1:], "--config", "broken.toml"), "config: .*not valid TOML"),
    "config value": (("--config", "wrong.toml"), "seed: .*got 'x'"),
    "weights missing": ((*PRUNE[1:], "--weights", "none.pt"), "weights: cannot read none.pt"),
    "weights of another network": (
        ("mnist-mlp", "--weights", "net.safetensors", "--sparsity", "0.5"),
        "weights: shapes .*fc1.weight",
    ),
    "factory missing": (("net.py:mk", "--sparsity", "0.5"), "target: .*'mk'.*make"),
    "out is a file": ((*PRUNE[1:], "--out", "net.py"), "out: net.py is a file; name a folder"),
    "out below a file": ((*PRUNE[1:], "--out", "net.py/run"), "out: cannot write to net.py/run"),
    "out has other files": ((*PRUNE[1:], "--out", "full"), "out: full holds other files"),
    "out and no-save": ((*PRUNE[1:], "--out", "run", "--no-save"), "out: .*--no-save"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_writes_nothing(case: str, run: Run, place: Path) -> None:
    """Exit 2; the message names the argument, what came and the way out; no traceback."""
    arguments, message = BAD[case]
    before = tree(place)
    ran = run("prune", *arguments, "--quiet")
    assert ran.code == 2
    assert ran.out == ""
    (line,) = [line for line in ran.err.splitlines() if "gaprune: error: " in line]
    assert re.search(message, line.removeprefix("gaprune: error: ")), line
    assert "Traceback" not in ran.err
    assert tree(place) == before


def test_a_folder_that_cannot_take_runs_is_found_before_the_search(run: Run, place: Path) -> None:
    """Also where the user named none."""
    Path("runs").write_text("a file")
    ran = run(*PRUNE)
    assert (ran.code, ran.out) == (2, "")
    assert "out: cannot write to runs/net-make-0.5" in ran.err
    assert "generation" not in ran.err


@pytest.mark.parametrize(
    "arguments", [("prune", "--sparsty", "0.5"), ("pruen",), ("demo", "--seed", "x"), ()]
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...], run: Run) -> None:
    """Unknown commands and options are named; no command at all shows the help."""
    ran = run(*arguments)
    assert ran.code == 2
    assert "Usage: gaprune" in ran.out + ran.err
    assert all(word in ran.out + ran.err for word in arguments[-2:-1])


@pytest.mark.parametrize("command", ["", "prune", "demo", "zoo", "doctor"])
def test_every_help_has_an_example(command: str, run: Run) -> None:
    """And exits with 0."""
    ran = run(*command.split(), "--help")
    assert ran.code == 0
    assert "Example: gaprune" in ran.out


def test_the_help_of_prune_has_every_setting_and_the_warning(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No setting without an option, and nobody runs a stranger's factory unwarned."""
    monkeypatch.setenv("COLUMNS", "200")
    out = run("prune", "--help").out
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')} " in out
    assert "factory file is code" in out


def test_a_failure_of_the_users_network_is_one_line(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 1; the traceback comes on request only."""
    arguments = ("prune", "net.py:make_shy", *OWN[1:], "--sparsity", "0.5", "--no-save", "-q")
    ran = run(*arguments)
    assert ran.code == 1
    assert re.fullmatch(r"a factory .*\ngaprune: error: .*too many of them.*\n", ran.err)
    monkeypatch.setenv("GAPRUNE_DEBUG", "1")
    assert "Traceback" in run(*arguments).err
    monkeypatch.setenv("GAPRUNE_DEBUG", "0")
    assert "Traceback" in run("--debug", *arguments).err


def test_a_full_disk_does_not_lose_the_result(run: Run, place: Path) -> None:
    """It cannot be saved, but it is shown; exit 1."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        ran = run(*PRUNE, "--method", "lamp", "--json", "--out", "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ran.code == 1
    assert json.loads(ran.out)["method"] == "lamp"
    assert "gaprune: error: out: cannot write" in ran.err
    assert not Path("run").exists()


def test_the_zoo_lists_every_network(run: Run) -> None:
    """Parameters as torch counts them, accuracy as its checkpoint says."""
    rows = json.loads(run("zoo", "--json").out)
    assert [row["name"] for row in rows] == list(ZOO)
    for row in rows:
        counted = sum(parameter.numel() for parameter in ZOO[row["name"]].factory().parameters())
        assert row["parameters"] == counted
        assert 0 < row["prunable"] <= counted
        assert row["dense_accuracy"] == ZOO[row["name"]].dense_accuracy
    shown = run("zoo").out
    assert all(row["name"] in shown and f"{row['prunable']:,}" in shown for row in rows)


def test_the_version_is_told(run: Run) -> None:
    """Alone on stdout."""
    assert re.fullmatch(r"gaprune \d+\.\d+\.\d+\n", run("--version").out)


class Command:
    """A real process of `python -m gaprune`, marked so that its descendants are found."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.mark = f"mark-{uuid.uuid4().hex}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gaprune", *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "GAPRUNE_MARK": self.mark,
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
        )

    def wait_for(self, text: str) -> None:
        """Read stderr until a line holds `text`."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if text in line:
                return
        pytest.fail(f"ended before it said {text!r}")

    def end(self) -> Ran:
        """Wait for the end and return what it did."""
        out, err = self.process.communicate(timeout=60)
        return Ran(self.process.returncode, out, err)

    def descendants(self) -> list[str]:
        """Return the command lines of processes that inherited the mark."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark in (process / "environ").read_text(errors="replace"):
                    found.append((process / "cmdline").read_text().replace("\0", " "))
            except OSError:  # gone, or somebody else's
                continue
        return found


@pytest.fixture
def start(place: Path) -> Iterator[Callable[..., Command]]:
    """Start commands; whatever is left of them at the end is killed."""
    started: list[Command] = []

    def call(*arguments: str) -> Command:
        started.append(Command(place, *arguments))
        return started[-1]

    yield call
    for command in started:
        if command.process.poll() is None:
            os.killpg(command.process.pid, signal.SIGKILL)
        command.process.communicate()


ENDLESS = ("prune", *OWN, "--sparsity", "0.5", *TINY, "--generations", "1000000", "--out", "run")


def assert_saved(ran: Ran, place: Path) -> None:
    """The run folder is complete, holds the best so far, and was shown."""
    assert {path.name for path in (place / "run").iterdir()} == set(FILES)
    record: dict[str, Any] = json.loads((place / "run" / "result.json").read_text())
    assert record["stopped"] == "interrupted"
    assert record["margin"] >= 0
    masks = load_masks(place / "run")
    assert sum(int(mask.count_nonzero()) for mask in masks.values()) == 120
    assert "the search was interrupted; this is the best so far" in ran.out
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


@pytest.mark.parametrize("search", [("--preset", "black-box"), ("--pareto",)], ids=["one", "front"])
@pytest.mark.parametrize("moment", [1, 9, 11, 19, 24, 31, 36, 41, 52])
def test_at_any_moment_of_the_search_an_interrupt_keeps_the_best(
    moment: int, search: tuple[str, ...], run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While baselines are judged there is nothing to keep; while scoring, racing, judging, there is.

    The signal comes from inside the user's objective, at one of its calls.
    """
    monkeypatch.setenv("INTERRUPT_AT", str(moment))
    own = ("--preset", "black-box", "--objective", "net.py:interrupt", "--generations", "90")
    ran = run(*PRUNE, *search, *own, "--out", "run", "--json")
    assert ran.code == 130
    if moment > 9:  # baselines, none of which needs a gradient
        record = json.loads(ran.out)
        assert record["stopped"] == "interrupted"
        assert record["margin"] >= 0
        assert {path.name for path in Path("run").iterdir()} >= set(FILES)
    else:
        assert "nothing is saved" in ran.err
        assert not Path("run").exists()


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


def test_ctrl_c_before_the_search_saves_nothing(start: Callable[..., Command], place: Path) -> None:
    """There is nothing to save yet, and the message says so."""
    before = tree(place)
    command = start("prune", "mnist-cnn", "--sparsity", "0.9", "--out", "run")
    command.wait_for("probes: ")
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
    with pytest.raises(SystemExit) as ended, Interrupts():
        signal.raise_signal(number)
    assert ended.value.code == code
    assert {one: signal.getsignal(one) for one in before} == before


def test_while_results_are_saved_only_the_third_signal_stops(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The first two are answered by a line, and count for the exit code."""
    with Interrupts() as interrupts:
        interrupts.phase("search")
        interrupts.phase("test")
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.exit_code == 130
        assert capfd.readouterr().err.count("finishing what was found") == 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
