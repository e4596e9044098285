"""Benchmark commands with their smallest settings: the rows, their figures, and the exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from export_cases import TINY
from real_network_cases import CASES as SMALL_CASES
from real_network_cases import TINY as TINY_CASE
from real_network_cases import open_deadly
from torch import nn
from torch.nn.utils import prune

from benchmarks import channels, faults, files, gpu, peers, quality, real_networks, scaling, speed
from benchmarks.bounds import Bound, bounds_table, flatten_figures, missed_bounds
from benchmarks.channel_methods import Case as ChannelCase
from benchmarks.cluster.actor_speed import measure_black_box
from benchmarks.cluster.fault_case import Row as FaultRow
from benchmarks.cluster.memory import measure_memory
from benchmarks.cluster.utilisation import SleepingActors, measure_utilisation
from benchmarks.exports import standalone, two_of_four
from benchmarks.exports.export_case import Case, Context, run_at
from benchmarks.exports.two_of_four import groups_of
from benchmarks.networks import RealNetwork
from benchmarks.peer_tools import TOOLS
from benchmarks.real.methods import METHODS
from benchmarks.real.prune_and_score import make_row
from benchmarks.real.rows import Key
from benchmarks.row_store import FILE, RowStore
from benchmarks.search_speed.equal_time import (
    COUNTS,
    ON_COUNTS,
    ON_WEIGHTS,
    WEIGHTS,
)
from benchmarks.search_speed.growth import exponent
from benchmarks.search_speed.optimizers import OPTIMIZERS
from benchmarks.search_speed.original_algorithm import subnet
from benchmarks.search_speed.original_comparison import Workload, measure_candidates, original_of
from benchmarks.search_speed.overhead import measure_overhead
from benchmarks.search_speed.timed_search import SearchProblem
from gaprune.config import make_settings
from gaprune.errors import GapruneError, InputError
from gaprune.models.target import load_target
from gaprune.models.zoo import mnist
from gaprune.runs.setup import check_settings

Capture = pytest.CaptureFixture[str]
SMALL_SEARCH = {
    "target": "mnist-mlp",
    "preset": "black-box",
    "population": 2,
    "offspring": 2,
    "generations": 4,
    "calibration_count": 8,
    "validation_count": 8,
}
COMMANDS: dict[str, Callable[..., int]] = {
    "channels": channels.main,
    "faults": faults.main,
    "files": files.main,
    "gpu": gpu.main,
    "peers": peers.main,
    "real_networks": real_networks.main,
    "scaling": scaling.main,
    "speed": speed.main,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_part_is_wrong_usage(name: str, tmp_path: Path, capsys: Capture) -> None:
    """The exit code is 2 and stderr repeats the name."""
    stored = name in ("channels", "files", "peers", "real_networks")
    rows = ["--rows", str(tmp_path)] if stored else []
    try:
        code: object = COMMANDS[name](["--only", "everythink", *rows])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert "everythink" in capsys.readouterr().err


# bounds and stored rows


def test_a_missed_bound_is_marked() -> None:
    """A figure that was not measured, or is None, misses nothing."""
    bounds = [Bound("a.b", 1.5, at_least=False, meaning="most"), Bound("c", 2, True, "least")]
    assert flatten_figures({"a": {"b": 1.0, "d": {"e": 2}}}) == {"a.b": 1.0, "a.d.e": 2}
    assert missed_bounds(bounds, {"a": {"b": 1.6}, "c": None}) == bounds[:1]
    assert not missed_bounds(bounds, {"a": {"b": 1.5}, "c": 2.0})
    lines = bounds_table(bounds, {"a": {"b": 1.6}, "c": None, "left": [0.5, 1]})
    assert lines[2] == "| a.b | 1.6 (missed) | ≤ 1.5 | most |"
    assert lines[-1] == "left: 0.5 1"


@pytest.mark.parametrize("module", [scaling, speed])
def test_a_missed_bound_is_exit_code_1(
    module: ModuleType, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--json` prints one object; parts with figures of the same name are merged."""
    bound = module.BOUNDS[0]
    good, bad = bound.limit, bound.limit + (-1 if bound.at_least else 1)
    for value, code in ((good, 0), (bad, 1)):
        parts = {
            "first": lambda *_, value=value: {bound.figure: value, "peak_mb": {"a": 1.0}},
            "second": lambda *_: {"more": 3.0},
        }
        monkeypatch.setattr(module, "PARTS", parts)
        assert module.main(["--json"]) == code
        figures = json.loads(capsys.readouterr().out)
        assert {bound.figure, "peak_mb", "more", "cores"} <= set(figures)


def test_stored_rows_are_reused_unless_their_inputs_change(tmp_path: Path) -> None:
    """A row with a note is measured again, and an incomplete last line is dropped."""
    calls: list[int] = []

    def measure(_: Context) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 1:
            raise GapruneError("the data is missing")
        return {"figure": len(calls)}

    case, context = Case("part", "name", measure, {"seed": (0, 1)}), Context(tmp_path, None)
    (first,) = files.rows_of([case], RowStore(tmp_path), context)
    assert (first["note"], first["figures"]) == ("the data is missing", {})
    (second,) = files.rows_of([case], RowStore(tmp_path), context)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"part": "pa')
    (third,) = files.rows_of([case], RowStore(tmp_path), context)
    assert second["figures"] == third["figures"] == {"figure": 2}
    changed = replace(case, made_of={"seed": (1, 1)})
    (other,) = files.rows_of([changed], RowStore(tmp_path), context)
    assert other["figures"] == {"figure": 3}
    for line in ("[1]", "text"):
        (tmp_path / FILE).write_text(line + "\n")
        with pytest.raises(InputError, match="rows"):
            RowStore(tmp_path)
    with pytest.raises(InputError, match="rows"):
        RowStore(tmp_path / FILE)


# quality, channels, gpu, faults


def test_a_median_below_the_limit_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    """The median is over seeds; the best one-shot mask has its column; rows are stored."""
    case = quality.Case("mnist-mlp", 0.95, "no data", 0.5)
    measured: list[int] = []

    def measure(case: quality.Case, seed: int, _workers: int) -> Iterator[quality.Row]:
        measured.append(seed)
        row = quality.Row(case.target, case.sparsity, case.method, seed, 0.6, 0.9, 0.9, 10, 1.0)
        yield replace(row, accuracy=0.6 + 0.1 * seed)
        yield replace(row, method=f"{case.method}: lamp", accuracy=0.4)

    monkeypatch.setattr(quality, "measure", measure)
    for limit, code in ((0.7, 0), (0.71, 1)):
        monkeypatch.setattr(quality, "CASES", (replace(case, limit=limit),))
        assert quality.main(["--seeds", "0", "1", "2", "--rows", str(tmp_path)]) == code
        assert "| 70.00%" in (out := capsys.readouterr().out)
        assert "lamp 40.00%" in out
    assert measured == [0, 1, 2]


CHANNELS = {
    "mobile-student": ChannelCase(0.5, 8, rounds=1, epochs=0.002),
    "mnist-cnn": ChannelCase(0.5),
}


@pytest.mark.slow
def test_channel_methods_reach_equal_macs(tmp_path: Path, capsys: Capture) -> None:
    """Both networks are timed; a method that a network does not support is a note in its row."""
    options = ["--rows", str(tmp_path), "--json", "--runtime", "torch"]
    options += ["--only", "mobile-student", "--method", "magnitude-structured", "slimming"]
    assert channels.main(options, CHANNELS) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == ["magnitude-structured", "slimming"]
    for row in rows:
        assert 0.3 < row["macs"]["kept"] / row["macs"]["dense"] <= 0.5
        assert all(speed["speed_up"] > 0 for speed in row["latency"]["torch"].values())
        assert row["accuracy"]["dense"] > 0.98
        assert (row["training"] == "none") == (row["method"] != "slimming")
    assert channels.main(options, CHANNELS) == 0
    assert json.loads(capsys.readouterr().out) == rows
    options = ["--rows", str(tmp_path), "--only", "mnist-cnn", "--method", "slimming"]
    assert channels.main(options, CHANNELS) == 1
    assert "BatchNorm" in capsys.readouterr().out


@pytest.mark.slow
def test_other_tools_get_the_same_budget(tmp_path: Path, capsys: Capture) -> None:
    """Masks in torch save nothing; a stopped benchmark continues from its rows."""
    tools = ["folding", "torch-pruning: magnitude", "torch.nn.utils.prune"]
    options = ["--rows", str(tmp_path), "--only", "mobile-student", "--tools", *tools]
    assert peers.main([*options, "--json"], CHANNELS) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["tool"] for row in rows] == tools
    for row in rows:
        fraction = row["macs"] / row["dense"]["macs"]
        assert fraction == 1 if row["tool"] == tools[-1] else 0.2 < fraction <= 0.5
        assert (row["params"] == row["dense"]["params"]) == (fraction == 1)
        assert 0 < row["accuracy"] <= row["dense"]["accuracy"]
        for latency in (row["latency_torch"], row["latency_onnx"]):
            for batch in ("1", "64"):
                low, middle, high = latency[batch]["speed_up"]
                assert 0 < low <= middle <= high
    assert peers.main([*options, "--json"], CHANNELS) == 0
    assert json.loads(capsys.readouterr().out) == rows


def test_a_tool_that_is_missing_or_fails_is_a_row_that_says_so(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no figures, and the exit code is that of a benchmark without any."""

    def broken(*_: object) -> None:
        raise GapruneError("out of order")

    monkeypatch.setitem(TOOLS, "missing", ("no-such-package", broken))
    monkeypatch.setitem(TOOLS, "broken", ("torch", broken))
    options = ["--rows", str(tmp_path), "--only", "mnist-cnn", "--tools", "missing", "broken"]
    network = RealNetwork(
        "mnist-cnn",
        lambda: load_target("mnist-cnn"),
        lambda model: model(torch.zeros(1, 1, 28, 28)),
        lambda _: 0.5,
        lambda *_: 1.0,
        1,
        "nothing",
    )
    monkeypatch.setattr(peers, "open_peer", lambda *_: network)
    assert peers.main([*options, "--json"], CHANNELS) == 1
    notes = {row["tool"]: row["note"] for row in json.loads(capsys.readouterr().out)}
    assert "no-such-package" in notes["missing"]
    assert notes["broken"] == "out of order"


@pytest.mark.slow
def test_gpu_benchmark_measures_the_cpu(capsys: Capture) -> None:
    """Every precision and grouped masks have a positive rate; without a GPU it fails."""
    options = ["--networks", "mnist-mlp", "--calibration", "16", "--seconds", "0", "--json"]
    assert gpu.main([*options, "--device", "cpu", "--only", "devices", "together"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 3 * len(gpu.PRECISIONS["cpu"]) + 2
    assert all(row["device"] == "cpu" and row["per_second"] > 0 for row in rows)
    if not torch.cuda.is_available():
        assert gpu.main([]) == 1
        assert "--device cpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "code", "cells"),
    [
        (FaultRow(survived=False, lost=None, recover_s=None, note="hangs"), 1, "NO |  |  | hangs"),
        (FaultRow(survived=True, lost=2, recover_s=1.26), 1, "yes | 2 | 1.3"),
        (FaultRow(survived=None, lost=None, recover_s=None), 0, "not tried"),
        (FaultRow(survived=True, lost=0, recover_s=3.0), 0, "yes | 0 | 3.0"),
    ],
)
def test_a_fault_that_is_not_survived_fails(
    row: FaultRow, code: int, cells: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does a lost generation; a fault that cannot be tried does not."""
    monkeypatch.setattr(faults, "undisturbed", lambda _: None)
    monkeypatch.setattr(faults, "FAULTS", {"a fault": lambda _: row})
    assert faults.main([]) == code
    assert cells in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_survives_another_model(capsys: Capture) -> None:
    """The benchmark of faults runs real commands."""
    assert faults.main(["--json", "--only", "another model"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["survived"], row["lost"]) == (True, 0)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_workers_are_measured(capsys: Capture) -> None:
    """Driver time, utilisation and memory have plausible figures."""
    assert measure_black_box(SMALL_SEARCH)["black_box_driver_ms"] > 0
    memory = measure_memory(SMALL_SEARCH, settled=2)
    assert memory["memory_growth_mb"] < 100 < 2 * memory["memory_actor_mb"]
    busy = measure_utilisation(SleepingActors(2, each=10, rounds=1))
    assert 0 < busy["utilisation_2"] <= 1
    options = ["--networks", "mnist-mlp", "--calibration", "16", "--seconds", "0"]
    options += ["--device", "cpu", "--only", "actors", "--actors", "1", "--json"]
    assert gpu.main(options) == 0
    assert json.loads(capsys.readouterr().out)[0]["per_second"] > 0


# speed


NO_TIME = 0.01  # seconds of a search; one candidate is scored all the same


def shortened(problem: SearchProblem) -> SearchProblem:
    """Return a problem with few inputs and hardly any time."""
    return replace(problem, seconds=NO_TIME, calibration=8, validation=8, kinds=("noise",))


def test_overhead_is_positive() -> None:
    """An exponent is the power of the size."""
    row = measure_overhead(("mnist-mlp",), calibration=8, pairs=2)
    assert 0 < row["overhead"]["mnist-mlp"] < 1000
    assert min(row["overhead_ms"]["mnist-mlp"].values()) > 0
    assert exponent([10, 20, 40], [1.0, 4.0, 16.0]) == pytest.approx(2)


@pytest.mark.parametrize("density", [0.05, 0.3])
def test_the_original_algorithm_keeps_the_top_scores(density: float) -> None:
    """Its masks equal those of torch's pruning by magnitude, and fitness is an accuracy."""
    scores = torch.randn(37, 11, generator=torch.Generator().manual_seed(1))
    layer = nn.Linear(11, 37, bias=False)
    layer.weight.data = scores.clone()
    prune.l1_unstructured(layer, "weight", amount=int((1 - density) * scores.numel()))
    assert torch.equal(subnet(scores.abs(), density), dict(layer.named_buffers())["weight_mask"])
    images, labels = (part[:20] for part in mnist.test_set())
    generations = original_of(images, labels, 2).generations(np.random.default_rng(3))
    assert all(0 <= fitness <= 1 for _ in range(2) for fitness in next(generations))


@pytest.mark.slow
def test_searches_are_compared_with_the_original_algorithm() -> None:
    """Every rate and ratio is positive."""
    load = Workload(images=20, population=2, offspring=2, steps=1, rounds=2, calibration=8)
    figures = measure_candidates(load)
    assert set(figures["candidates_per_second"]) == {"original", "classic", "racing", "default"}
    assert min(flatten_figures(figures).values()) > 0


@pytest.mark.parametrize(
    "name",
    [pytest.param(o, marks=pytest.mark.slow if "gaprune" in o else ()) for o in OPTIMIZERS],
)
def test_every_optimizer_returns_a_mask(name: str) -> None:
    """However short the time limit is."""
    package = OPTIMIZERS[name].package
    if package is not None:
        pytest.importorskip(package)
    assert name in (*ON_WEIGHTS, *ON_COUNTS)
    score = OPTIMIZERS[name].search(shortened(COUNTS if name in ON_COUNTS else WEIGHTS))
    assert all(0 <= share <= 1 for share in (score.accuracy, score.agreement))
    ends_early = (
        name.startswith("gaprune") and name in ON_WEIGHTS
    )  # a whole run, with one-shot masks
    assert score.evaluations >= (0 if ends_early else 1)
    assert score.peak_mb >= score.before_mb > 50


# files


@pytest.mark.parametrize("case", two_of_four.CASES, ids=lambda case: f"{case.part} {case.name}")
def test_settings_of_the_comparison_at_2_4_are_possible(case: Case) -> None:
    """No one-shot method is given what only a search takes."""
    check_settings(make_settings(case.made_of))


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a small network, made by the benchmark."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return run_at(folder, {"target": "lenet", "sparsity": 0.9, **TINY})


def figures_of(part: str, name: str, run: Path) -> dict[str, float]:
    """Return the figures of one case."""
    (case,) = (case for case in files.CASES if (case.part, case.name) == (part, name))
    return dict(case.measure(Context(run, None)))


@pytest.mark.slow
def test_file_sizes_and_accuracy(small_run: Path) -> None:
    """A lossless file loses nothing, a codebook is smaller, and every bound has a case."""
    accuracy = json.loads((small_run / "result.json").read_text())["accuracy"]["pruned"]
    sparse, book = (figures_of("sizes", name, small_run) for name in ("sparse", "codebook-16"))
    assert sparse["accuracy"] == pytest.approx(accuracy)
    assert (sparse["points_lost"], sparse["same_bits"]) == (0, 1)
    assert sparse["times_smaller"] > 4
    assert (book["same_bits"], book["bytes"] < sparse["bytes"]) == (0, True)
    cases = {f"{case.part}.{case.name}" for case in files.CASES}
    assert {bound.figure.rpartition(".")[0] for bound in files.BOUNDS} <= cases
    assert run_at(small_run, {}) == small_run  # an existing run is not made again


@pytest.mark.slow
@pytest.mark.parametrize("name", [*standalone.SCRIPTS, "loading"])
def test_exports_load_without_gaprune(name: str, small_run: Path) -> None:
    """Outputs differ by at most 1e-5; loading is timed in its own process."""
    if name == "loading":
        assert figures_of("loading", "sparse", small_run)["ms"] > 0
        return
    try:
        assert figures_of("standalone", name, small_run)["difference"] <= 1e-5
    except GapruneError as error:
        if "not installed" not in str(error):
            raise
        pytest.skip(str(error))


def test_groups_of_four_are_counted() -> None:
    """Two rows of two groups, one with three weights; a layer without groups; a convolution."""
    weight = torch.tensor([[1.0, 0, 2, 0, 3, 4, 5, 0], [0, 0, 0, 6, 0, 0, 0, 0]])
    conv = torch.zeros(3, 4, 2, 2)
    conv[0, :3, 1, 1] = 1  # three weights along the inputs
    conv[1, 0] = 1  # four weights along the kernel, which is no group
    counts = groups_of({"a": weight, "b": torch.ones(2, 6), "c": conv})
    assert counts == {"groups": 4 + 3 * 4, "broken": 2, "whole_layers": 1}


# real networks


@pytest.mark.slow
def test_real_networks_continue_after_a_stop(tmp_path: Path, capsys: Capture) -> None:
    """A stored row is reused; a missing network gives rows with the reason."""
    options = ["--rows", str(tmp_path), "--json", "--method", "lamp"]
    assert real_networks.main(options, SMALL_CASES) == 0
    row, *missing = json.loads(capsys.readouterr().out)
    assert (row["network"], row["dense"], row["test_count"]) == ("tiny", 0.75, 80)
    assert 0 <= row["score"] <= 1
    assert len(missing) == 2
    assert all(row["score"] is None and "nowhere" in row["note"] for row in missing)
    assert (
        real_networks.main([*options[:2], "--only", "tiny", "--method", "lamp"], SMALL_CASES) == 0
    )
    printed = capsys.readouterr()
    assert not printed.err
    assert "75.00 %" in printed.out


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_complete_row(method: str, tmp_path: Path) -> None:
    """Scores are finite, and `needs` is the data level of the inputs that the method uses."""
    row = make_row(TINY_CASE, Key("tiny", 0.5, method, 0), None, tmp_path)
    assert not row.note
    assert row.score is not None
    assert row.agreement is not None
    assert row.removed == 0.5
    assert row.peak_mb is not None
    assert row.peak_mb > 50
    weights_only = method in ("magnitude", "lamp", "synflow")
    level = "proxy" if method == "proxy" else "procedural"
    assert row.needs == ("none" if weights_only else level)


@pytest.mark.slow
def test_a_killed_process_is_a_note(tmp_path: Path) -> None:
    """The benchmark continues with the other rows."""
    cases = {"deadly": replace(TINY_CASE, open=open_deadly)}
    keys = real_networks.keys_of(cases, [], [], ["lamp"], [0])
    (row,) = real_networks.rows_of(cases, keys, RowStore(tmp_path), None, tmp_path)
    assert row.score is None
    assert "SIGKILL" in row.note
