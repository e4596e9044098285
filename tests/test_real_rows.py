"""Rows of the benchmark on real networks: what they say, and where they are kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import real_cases
import torch
from real_cases import TINY, held_out, open_tiny, tiny_model
from torch import nn
from torch.nn.utils import prune

from benchmarks.networks.scoring import accuracy, outputs_of, same_class
from benchmarks.real.measure import Case, make_row, settings_of
from benchmarks.real.methods import METHODS, SEARCH_ONLY
from benchmarks.real.rows import FILE, Kept, Key, Row
from gaprune.config import Settings, make_settings
from gaprune.errors import InputError
from gaprune.runs.prune import prune_target

CONTRACT = ("network", "sparsity", "method", "score", "dense", "agreement", "seconds", "peak_mb")


def row_of(method: str, folder: Path, case: Case = TINY, sparsity: float = 0.5) -> Row:
    """Make a row of the small network in this process."""
    return make_row(case, Key("tiny", sparsity, method, 0), None, folder)


def shares(model: nn.Module) -> tuple[float, float]:
    """Return score and agreement of a network by hand."""
    inputs, labels = held_out()
    outputs, dense = outputs_of(model, inputs), outputs_of(tiny_model(), inputs)
    return accuracy(outputs, labels), same_class(outputs, dense)


@pytest.mark.parametrize("sparsity", [0.5, 0.8])
def test_the_row_of_magnitude_is_that_of_torch(tmp_path: Path, sparsity: float) -> None:
    """The score is that of a network pruned by `torch.nn.utils.prune`; dense is 75 %."""
    row = row_of("magnitude", tmp_path, sparsity=sparsity)
    model = tiny_model()
    weights = [(layer, "weight") for layer in model.modules() if isinstance(layer, nn.Linear)]
    prune.global_unstructured(weights, prune.L1Unstructured, amount=sparsity)
    assert (row.score, row.agreement) == shares(model)
    assert row.dense == 0.75
    assert row.removed == sparsity
    assert not row.note


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_whole_row(method: str, tmp_path: Path) -> None:
    """All figures are there, as plain data; what was shown is said where it was looked at."""
    row = row_of(method, tmp_path)
    record = json.loads(json.dumps(row.record(), allow_nan=False))
    assert not record["note"]
    assert all(record[name] is not None for name in CONTRACT)
    assert (record["held_out"], record["measure"]) == (80, "top-1 on numbers")
    assert 0 < record["probe_seconds"] < record["seconds"]
    assert not record["cached"]
    assert record["peak_mb"] > 50
    assert record["provenance"]["level"] == ("proxy" if method == "proxy" else "procedural")
    blind = ("magnitude", "lamp", "synflow")  # weights alone
    assert record["needs"] == ("none" if method in blind else record["provenance"]["level"])


@pytest.mark.parametrize("method", ["strict", "repair", "lamp-repair"])
def test_a_row_is_what_the_product_gives(method: str, tmp_path: Path) -> None:
    """Strict rows score the network as in the checkpoint, the others the repaired one."""
    row = row_of(method, tmp_path, sparsity=0.8)
    settings = settings_of(TINY, Key("tiny", 0.8, method, 0))
    result = prune_target(open_tiny(None).load(), make_settings(settings))
    strict, repaired = result.pruned_model(), result.repaired_model()
    assert (repaired is None) == (method == "strict")
    assert (row.score, row.agreement) == shares(strict if repaired is None else repaired)
    assert row.validation == result.validation_agreement
    if repaired is not None:
        assert not torch.equal(strict[1].running_mean, repaired[1].running_mean)  # type: ignore[index]


def test_one_shot_methods_see_the_calibration_of_the_search(tmp_path: Path) -> None:
    """The receipts are equal by hash, whatever the settings of the search."""
    rows = [row_of(name, tmp_path) for name in ("strict", "wanda", "lamp-repair")]
    assert len({json.dumps(row.provenance) for row in rows}) == 1
    assert "steps" in rows[0].settings
    assert not SEARCH_ONLY & set(rows[1].settings)
    assert set(Settings.model_fields) >= SEARCH_ONLY


def test_a_proxy_takes_the_place_of_the_calibration(tmp_path: Path) -> None:
    """Its inputs lie beside the rows and are all that is shown, and no path is a setting."""
    row = row_of("proxy", tmp_path)
    assert row.provenance is not None
    assert (row.provenance["samples"], row.provenance["validation_samples"]) == (40, 10)
    assert not row.provenance["fresh"]
    assert (tmp_path / "proxies" / "tiny.safetensors").exists()
    assert row.settings["calibration"] == ["proxy:proxies/tiny.safetensors"]


def test_what_cannot_be_made_says_why(tmp_path: Path) -> None:
    """No network, no proxy, a budget that cannot be met: a note, and no score."""
    closed = row_of("strict", tmp_path, replace(TINY, open=real_cases.open_nowhere))
    assert closed.note == "nowhere: is not installed; pip install nowhere"
    assert closed.held_out == 0
    unfit = row_of("proxy", tmp_path, replace(TINY, proxy=real_cases.no_proxy))
    assert (unfit.note, unfit.held_out) == ("data: needs photographs", 80)
    wrong = row_of("lamp", tmp_path, replace(TINY, settings={"calibration": ["photos"]}))
    assert "calibration inputs: unknown name 'photos'" in wrong.note
    assert {row.score for row in (closed, unfit, wrong)} == {None}


def test_rows_are_kept_and_found_again(tmp_path: Path) -> None:
    """A row counts with the settings that made it; the later one of a key counts."""
    row = Row(
        "net", 0.5, "lamp", 0, score=0.1, settings={"calibration": ("a", "b")}, warnings=("w",)
    )
    kept = Kept(tmp_path / "rows")
    kept.add(row)
    kept.add(replace(row, score=0.25))
    for folder in (kept, Kept(tmp_path / "rows")):
        found = folder.find(row.key, {"calibration": ["a", "b"]})
        assert found is not None
        assert (found.score, found.warnings) == (0.25, ("w",))
        assert folder.find(row.key, {"calibration": ["a"]}) is None
        assert folder.find(row.key._replace(seed=1), {"calibration": ["a", "b"]}) is None


def test_a_row_without_a_score_is_tried_again(tmp_path: Path) -> None:
    """A package may be installed by then."""
    row = Row("net", 0.5, "lamp", 0, note="no package")
    Kept(tmp_path).add(row)
    assert Kept(tmp_path).find(row.key, {}) is None


def test_a_torn_line_is_dropped_and_a_foreign_one_refused(tmp_path: Path) -> None:
    """What the machine could not finish is made again; what is no row is a message."""
    row = Row("net", 0.5, "lamp", 0, score=0.5)
    Kept(tmp_path).add(row)
    file = tmp_path / FILE
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:-20])
    kept = Kept(tmp_path)
    assert file.read_bytes() == whole
    assert kept.find(row.key, {}) == row
    for line in ('{"network": "net"}', "[]", "text"):
        file.write_text(line + "\n")
        with pytest.raises(InputError, match="is no row"):
            Kept(tmp_path)
    with pytest.raises(InputError, match="cannot write to"):
        Kept(file)
