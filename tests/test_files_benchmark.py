"""`benchmarks.files`: its parts on a tiny run, rows that are kept, and claims that are checked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from export_cases import TINY

from benchmarks import files
from benchmarks.claims import missed
from benchmarks.exported import alone, two_of_four
from benchmarks.exported.case import Case, Context, run_at
from benchmarks.exported.files import CASES as FILES
from benchmarks.exported.rows import FILE, Kept, Row, figures_of
from gaprune.errors import GapruneError, InputError

CONFIG = {"target": "lenet", "sparsity": 0.9, **TINY}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a small network, made by the benchmark through the product."""
    return run_at(tmp_path_factory.mktemp("runs") / "run", CONFIG)


def measured(part: str, name: str, run: Path) -> dict[str, float]:
    """Return the figures of one case."""
    (case,) = (one for one in files.CASES if (one.part, one.name) == (part, name))
    return dict(case.measure(Context(run, None)))


def test_a_run_that_is_there_is_not_made_again(run: Path) -> None:
    """Its files stay as they are."""
    before = (run / "result.json").stat().st_mtime_ns
    assert run_at(run, {}) == run
    assert (run / "result.json").stat().st_mtime_ns == before


def test_sizes_are_those_of_files_and_accuracy_is_that_of_the_run(run: Path) -> None:
    """Without rounding nothing is lost; with few values something is changed."""
    accuracy = json.loads((run / "result.json").read_text())["accuracy"]["pruned"]
    sparse, book = (measured("sizes", name, run) for name in ("sparse", "codebook-16"))
    assert sparse["accuracy"] == pytest.approx(accuracy)
    assert (sparse["points_lost"], sparse["same_bits"]) == (0, 1)
    assert sparse["times_smaller"] == sparse["dense_bytes"] / sparse["bytes"] > 4
    assert book["same_bits"] == 0
    assert book["bytes"] < sparse["bytes"]
    assert book["points_lost"] == pytest.approx(100 * (accuracy - book["accuracy"]))


@pytest.mark.slow
def test_loading_is_timed_in_turns(run: Path) -> None:
    """Both times are there, and their ratio."""
    found = measured("loading", "sparse", run)
    assert found["ms"] > 0
    assert found["dense_ms"] > 0
    assert 0.2 < found["times_as_long"] * found["dense_ms"] / found["ms"] < 5


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(form, marks=() if form == "dense" else pytest.mark.slow)
        for form in alone.SCRIPTS
    ],
)
def test_a_process_without_gaprune_answers_as_the_pruned_network(form: str, run: Path) -> None:
    """To 1e-5; where the package of the network is missing, the row would say so."""
    try:
        found = measured("alone", form, run)
    except GapruneError as error:
        if "is not installed" not in str(error):
            raise
        pytest.skip(str(error))
    assert found["difference"] <= 1e-5
    assert found["inputs"] > 1


def test_groups_are_counted_by_hand() -> None:
    """Two rows of two groups, one of them with three weights; a layer without groups."""
    weight = torch.tensor([[1.0, 0, 2, 0, 3, 4, 5, 0], [0, 0, 0, 6, 0, 0, 0, 0]])
    conv = torch.zeros(3, 4, 2, 2)
    conv[0, :3, 1, 1] = 1  # along the inputs, not along the kernel
    conv[1, 0] = 1
    found = two_of_four.groups_of({"a": weight, "b": torch.ones(2, 6), "c": conv})
    assert found == {"groups": 4 + 3 * 4, "broken": 2, "whole_layers": 1}


def test_rows_are_kept_and_made_anew_where_something_changed(tmp_path: Path) -> None:
    """Also notes are tried again, and a torn line is cut off."""
    made: list[str] = []

    def measure(_: Context) -> dict[str, float]:
        made.append("one")
        if len(made) == 1:
            raise GapruneError("the data is missing")
        return {"figure": len(made)}

    case, context = Case("part", "name", measure, {"seed": 0}), Context(tmp_path, None)
    (first,) = files.rows_of([case], Kept(tmp_path), context)
    assert (first.note, first.figures) == ("the data is missing", {})
    (second,) = files.rows_of([case], Kept(tmp_path), context)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"part": "pa')
    (third,) = files.rows_of([case], Kept(tmp_path), context)
    assert second.figures == third.figures == {"figure": 2}
    (other,) = files.rows_of([replace(case, made_of={"seed": 1})], Kept(tmp_path), context)
    assert other.figures == {"figure": 3}
    (tmp_path / FILE).write_text("nonsense\n")
    with pytest.raises(InputError, match=r"rows: a line of .* is no row"):
        Kept(tmp_path)


def test_a_row_follows_the_run_that_it_was_made_of(run: Path) -> None:
    """Another run of the same name makes other rows."""
    case = FILES[0]
    assert case.uses_run
    before = case.depends_on(Context(run, None))
    other = run.with_name("other")
    other.mkdir()
    (other / "pruned.safetensors").write_bytes(b"other weights")
    assert case.depends_on(Context(other, None))["run"] != before["run"]


def test_claims_speak_of_figures_that_there_are() -> None:
    """Every claim is of a case, and one that is missed is marked."""
    there = {(case.part, case.name) for case in files.CASES}
    for claim in files.CLAIMS:
        part, _, rest = claim.figure.partition(".")
        assert (part, rest.rpartition(".")[0]) in there, claim
    rows = [Row("sizes", "sparse", {"times_smaller": 19.0, "points_lost": 0})]
    assert [one.figure for one in missed(files.CLAIMS, figures_of(rows))] == [
        "sizes.sparse.times_smaller"
    ]


def test_the_command_measures_a_part_and_says_what_is_missing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the pairs there is a note for MiniLM; an unknown part is wrong usage."""
    rows = ("--rows", str(tmp_path))
    assert files.main(["--only", "minilm-2:4", *rows]) == 1
    assert "not measured (minilm-2:4 evolved" in capsys.readouterr().out
    assert files.main(["--only", "minilm-2:4", "--json", *rows]) == 1
    records = json.loads(capsys.readouterr().out)
    assert [record["name"] for record in records] == list(two_of_four.METHODS)
    assert files.main(["--only", "sices", *rows]) == 2
    assert "did you mean 'sizes'?" in capsys.readouterr().err
