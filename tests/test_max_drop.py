"""`max_drop`: the sparsest masks within a limit of lost agreement, and the sparsities tried."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import OWN, TINY, Run
from hypothesis import given
from hypothesis import strategies as st
from search_cases import layout_of, seeded, tiny_model

from gaprune import GapruneError, InputError, InputOptions, Result, compare, prune
from gaprune.callbacks import Observer
from gaprune.config import LARGEST_SPARSITY
from gaprune.io.run_files import FILES
from gaprune.masks.budget import keep_total
from gaprune.records import Generation
from gaprune.runs.directory import load_masks
from gaprune.runs.job import make_job
from gaprune.runs.max_drop import CLOSE, LEAST_SPARSITY, MAX_SEARCHES, SparsityRange

SMALL: dict[str, Any] = {
    "inputs": InputOptions(range=(0, 1)),
    "calibration": ("procedural",),
    "calibration_count": 64,
    "validation_count": 64,
    "generations": 2,
    "steps": 5,
    "batch": 16,
    "population": 3,
    "offspring": 2,
}
BY_NUMBERS = ("--objective", "relative-error")  # an untrained network has one class for all inputs


def run(max_drop: float = 0.1, **changes: Any) -> Result:
    """Look for the limit of a tiny network in small searches."""
    return prune(tiny_model(), max_drop=max_drop, **{**SMALL, **changes})


@pytest.fixture(scope="module")
def found() -> Result:
    """The limit at a loss of ten points."""
    return run()


def assert_furthest(result: Result, drop: float) -> None:
    """The result holds, is the sparsest that does, and the next that was tried does not."""
    tried = sorted(result.trials, key=lambda one: float(one["sparsity"]))
    assert len({one["sparsity"] for one in tried}) == len(tried)
    assert all(one["within_limit"] == (one["validation"] >= 1 - drop - 1e-9) for one in tried)
    held = [one["sparsity"] for one in tried if one["within_limit"]]
    place = [one["sparsity"] for one in tried].index(result.sparsity)
    assert held[-1] == result.sparsity
    assert all(not one["within_limit"] for one in tried[place + 1 :])
    assert result.kept == keep_total(result.target.layout, result.sparsity)


@pytest.mark.parametrize(
    ("drop", "changes"),
    [
        (0.1, {}),
        (0.05, {"method": "magnitude"}),
        (0.1, {"repair": True}),
        (0.1, {"scope": "layer", "method": "lamp"}),
        (0.3, {"preset": "black-box"}),
        (0.0, {"method": "taylor"}),
    ],
    ids=str,
)
def test_the_result_holds_and_the_next_one_tried_does_not(
    drop: float, changes: dict[str, Any]
) -> None:
    """Whatever the search; with repair, repaired masks are judged."""
    result = run(drop, **changes)
    assert_furthest(result, drop)
    (own,) = [one for one in result.trials if one["sparsity"] == result.sparsity]
    validation = (
        result.validation_agreement if result.repaired is None else result.repaired.validation
    )
    assert own == {"sparsity": result.sparsity, "validation": validation, "within_limit": True}
    assert (result.repaired is not None) == changes.get("repair", False)
    assert "method" in changes or len(result.trials) <= MAX_SEARCHES


def test_the_masks_are_those_of_a_run_at_that_sparsity(found: Result) -> None:
    """Bit for bit, though the calibration inputs were made once for all searches."""
    alone = prune(tiny_model(), sparsity=found.sparsity, **SMALL)
    assert all(torch.equal(alone.masks[name], found.masks[name]) for name in alone.masks)
    assert alone.provenance == found.provenance
    assert alone.validation_agreement == found.validation_agreement
    assert alone.trials == ()
    assert found.evaluations > alone.evaluations  # those of all searches


def test_settings_and_record_repeat_the_question(found: Result) -> None:
    """What was asked stays asked, the answer has its own place, and all of it is JSON."""
    record = json.loads(json.dumps(found.record(), allow_nan=False))
    assert record["settings"]["max_drop"] == 0.1
    assert record["settings"]["sparsity"] == LARGEST_SPARSITY
    assert record["sparsity"]["asked"] == found.sparsity < LARGEST_SPARSITY
    assert record["trials"] == [dict(one) for one in found.trials]
    again = prune(tiny_model(), inputs=SMALL["inputs"], **found.settings)
    assert again.trials == found.trials


def test_a_stated_sparsity_is_the_largest_tried() -> None:
    """Where it holds, it is the answer."""
    result = run(sparsity=0.3)
    assert result.sparsity == 0.3
    assert [one["sparsity"] for one in result.trials] == [0.3]


def test_test_data_are_measured_once_at_the_end(found: Result) -> None:
    """On what is returned, and the choice does not depend on them."""
    inputs = torch.rand(50, 6, generator=seeded(8))
    labels = tiny_model()(inputs).argmax(1)
    phases: list[str] = []
    tested = run(test=(inputs, labels), observer=Noting(phases))
    assert phases.count("test") == 1
    assert phases[-1] == "test"
    assert tested.trials == found.trials
    hits = tested.pruned_model()(inputs).argmax(1) == labels
    assert tested.accuracy == hits.double().mean().item()
    assert tested.dense_accuracy == 1.0
    assert all(one.accuracy is not None for one in tested.baselines.values())


class Noting(Observer):
    """An observer that notes the phases."""

    def __init__(self, phases: list[str]) -> None:
        self.phases = phases

    def phase(self, name: str, detail: str) -> None:
        """Note it."""
        self.phases.append(name)


class PressesStop(Observer):
    """An observer at whose n-th generation the user presses Ctrl-C."""

    def __init__(self, at: int) -> None:
        self.left = at

    def generation(self, record: Generation, total: int | None) -> None:
        """Interrupt, at the n-th."""
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interrupt_keeps_the_best_that_holds() -> None:
    """In the middle of the last search, what was found before; its own masks do not hold."""
    found = run(0.06)
    assert [one["within_limit"] for one in found.trials[-2:]] == [True, False]
    generations = 3 * len(found.trials)
    stopped = run(0.06, observer=PressesStop(generations - 1))
    assert stopped.stopped == "interrupted"
    assert stopped.sparsity == found.sparsity
    assert stopped.trials == found.trials[:-1]
    assert all(torch.equal(stopped.masks[name], found.masks[name]) for name in found.masks)


def test_an_interrupt_before_anything_holds_is_passed_on() -> None:
    """There is nothing to keep."""
    with pytest.raises(KeyboardInterrupt):
        run(0.0, observer=PressesStop(1), preset="classic", objective="kl", population=4)


def test_where_nothing_holds_the_figures_are_told() -> None:
    """The smallest sparsity tried, its agreement, what was asked, and what may help."""
    message = r"max_drop: 0 .*0\.1.*\d+\.\d+%.*100\.00%.*generations=.*repair=True"
    with pytest.raises(GapruneError, match=message) as caught:
        run(0.0, method="random")
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "^sparsity: .*max_drop="),
        ({"max_drop": 1.0}, "max_drop: .*1.0"),
        ({"max_drop": -0.1}, "max_drop: .*-0.1"),
        ({"max_drop": float("nan")}, "max_drop: .*nan"),
        ({"max_drop": 0.1, "pareto": True}, "max_drop: .*pareto=True"),
    ],
    ids=str,
)
def test_bad_questions_are_refused(settings: dict[str, Any], message: str) -> None:
    """One message each, before anything is computed."""
    with pytest.raises(InputError, match=message):
        prune(tiny_model(), **settings)


def test_comparisons_have_no_limit() -> None:
    """Their sparsities are stated."""
    with pytest.raises(InputError, match="max_drop"):
        compare(tiny_model(), sparsity=0.5, max_drop=0.1)


def next_tries(
    span: SparsityRange, first: float, most_kept: int, count: int
) -> tuple[list[float], Any]:
    """Search where exactly the masks with at least `most_kept` weights hold."""
    held: float | None = None
    failed: float | None = None
    tried: list[float] = []
    sparsity: float | None = first
    while sparsity is not None and len(tried) < count:
        tried.append(sparsity)
        if keep_total(span.layout, sparsity) >= most_kept:
            held = sparsity
        else:
            failed = sparsity
        sparsity = span.next(held, failed, len(tried))
    return tried, (held, failed)


@given(
    st.lists(st.integers(1, 3000), min_size=1, max_size=4),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from(["allocated", "layer"]),
)
def test_tries_close_in_on_the_limit(
    sizes: list[int], start: float, limit: float, scope: str
) -> None:
    """Wherever they begin, to five percent of the kept weights or an end of the span."""
    span = SparsityRange.up_to(layout_of(sizes), scope, LARGEST_SPARSITY)
    low, high = keep_total(span.layout, span.most), keep_total(span.layout, span.least)
    needed = low + round(limit * (high - low))
    first = span.at(math.exp(start * math.log(1 - span.least) + (1 - start) * -7))
    tried, (held, failed) = next_tries(span, first, needed, 40)
    assert len(tried) < 20
    assert len(set(tried)) == len(tried)
    assert all(span.least <= one <= span.most for one in tried)
    assert held is not None  # the densest one does
    kept = keep_total(span.layout, held)
    if failed is None:
        assert kept == low
    else:
        rounding = 1 + 0.01 * kept  # densities have three digits
        assert (
            kept <= CLOSE * keep_total(span.layout, failed)
            or kept - keep_total(span.layout, failed) <= rounding
        )


def test_the_span_ends_where_a_layer_would_be_emptied() -> None:
    """At one weight a layer, or at the density that rounds to one of the smallest."""
    assert SparsityRange.up_to(layout_of([40, 10]), "global", 0.999).most == 0.96
    assert SparsityRange.up_to(layout_of([40, 10]), "layer", 0.999).most == 0.95
    assert SparsityRange.up_to(layout_of([40, 10]), "layer", 0.6).most == 0.6
    assert SparsityRange.up_to(layout_of([40, 10]), "global", 0.05).least == 0.05
    assert SparsityRange.up_to(layout_of([40, 10]), "global", 0.6).least == LEAST_SPARSITY


def test_a_job_can_have_a_limit_instead_of_a_sparsity() -> None:
    """As text or as a number; what it writes it reads."""
    job = make_job({"target": "lenet", "max_drop": "0.01"})
    assert (job.settings.max_drop, job.settings.sparsity) == (0.01, LARGEST_SPARSITY)
    assert make_job(job.as_config()) == job
    with pytest.raises(InputError, match=r"^sparsity: .*max_drop="):
        make_job({"target": "lenet"})


def test_a_limit_from_the_command_line_to_the_disk(run: Run, place: Path) -> None:
    """The table of what was tried, the masks, and a config that repeats it."""
    ran = run("prune", *OWN, *TINY, *BY_NUMBERS, "--max-drop", "0.2", "--quiet")
    assert ran.code == 0, ran.err
    assert "20.00" in ran.out
    folder = Path("runs/net-make-drop-0.2")
    record = json.loads((folder / "result.json").read_text())
    rows = [line.split() for line in ran.out.splitlines() if line.endswith((" yes  ", " no  "))]
    told = {(float(row[0]), row[-1] == "yes") for row in rows}
    assert told == {(one["sparsity"], one["within_limit"]) for one in record["trials"]}
    kept = sum(int(mask.count_nonzero()) for mask in load_masks(folder).values())
    assert kept / 240 == pytest.approx(1 - record["sparsity"]["asked"], abs=0.5 / 240)
    config = tomllib.loads((folder / "config.toml").read_text())
    assert config["max_drop"] == 0.2
    again = run("prune", "--config", str(folder / "config.toml"), "--json", "--no-save")
    assert json.loads(again.out)["trials"] == record["trials"]


@pytest.mark.parametrize("moment", [1, 12, 46, 80])
def test_ctrl_c_saves_the_best_that_holds(
    moment: int, run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 130 at any moment: with a complete folder once a search has led, before with none.

    The signal comes from inside the user's objective, at one of its calls.
    """
    monkeypatch.setenv("INTERRUPT_AT", str(moment))
    own = ("--preset", "black-box", "--objective", "net.py:interrupt", "--range=-3,3")
    ran = run("prune", *OWN, *TINY, *own, "--max-drop", "0.3", "--out", "run", "--json")
    assert ran.code == 130, ran.err
    assert "gaprune resume run" in ran.err
    if moment < 20:  # one-shot masks are looked at, to know where to begin
        assert not set(FILES) & {path.name for path in Path("run").iterdir()} - {"config.toml"}
    else:
        record = json.loads(ran.out)
        assert record["stopped"] == "interrupted"
        assert record["agreement"]["validation"] >= 0.7
        assert {path.name for path in Path("run").iterdir()} >= set(FILES)
    monkeypatch.setenv("INTERRUPT_AT", "0")
    resumed = json.loads(run("resume", "run", "--json", "--quiet").out)
    undisturbed = json.loads(run("prune", *OWN, *TINY, *own, "--max-drop", "0.3", "--json").out)
    for name in ("trials", "agreement", "evaluations", "layers", "stopped"):
        assert resumed[name] == undisturbed[name], name
