"""Tables of README and documentation: written from saved rows, checked, of one version."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks import peers, saved_rows, tables
from benchmarks.quality import NO_DATA, Row
from benchmarks.row_store import VERSION
from gaprune.errors import InputError

ROW = Row("mnist-mlp", 0.98, NO_DATA, 0, 0.96, 0.8, 0.8, 10, 1.0)
REAL_ROW = dict.fromkeys(saved_rows.FIELDS[saved_rows.REAL]) | {
    "network": "resnet20",
    "sparsity": 0.7,
    "seed": 0,
    "dense": 0.8,
    "note": "",
}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A folder with rows of a search on two seeds, of a real network, and of one-shot masks."""
    folder = tmp_path / "rows"
    one_shot = replace(ROW, method=f"{NO_DATA}: lamp", accuracy=0.5)
    quality = [ROW, replace(ROW, seed=1, accuracy=0.94), one_shot]
    real = [{**REAL_ROW, "method": name, "score": 0.7} for name in ("strict", "lamp")]
    missing = {**REAL_ROW, "method": "wanda", "score": None, "note": "no package"}
    saved_rows.add_rows([*map(asdict, quality), *real, missing], "two cores", folder)
    return folder


def test_the_pages_have_the_tables_of_the_saved_rows() -> None:
    """README and documentation show the rows in benchmarks/rows."""
    assert tables.main(["--check"]) == 0


def test_a_page_that_differs_is_named(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--check` fails and names it; without the option it is written."""
    (tmp_path / "benchmarks").mkdir()
    for name in ("README.md", "benchmarks/README.md"):
        (tmp_path / name).write_text("<!-- table: results -->\n<!-- end of table -->\n")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(saved_rows, "ROWS", rows)
    assert tables.main(["--check"]) == 1
    assert "benchmarks/README.md: " in capsys.readouterr().err
    assert tables.main([]) == tables.main(["--check"]) == 0
    text = (tmp_path / "README.md").read_text()
    assert "| mnist-mlp | 98 % | 98.37 | **95.00** | +45.00 (lamp 50.00) | none |" in text
    assert "| ResNet-20, CIFAR-10 | 70 % | 80.00 | **70.00** | +0.00 (lamp 70.00) | none |" in text
    (tmp_path / "README.md").write_text("<!-- table: resluts -->\n<!-- end of table -->\n")
    with pytest.raises(InputError, match="resluts"):
        tables.outdated_pages(saved_rows.load_rows())


def test_new_rows_replace_saved_ones(rows: Path, tmp_path: Path) -> None:
    """A row without a score is not saved, and no two versions are mixed."""
    saved = saved_rows.load_rows(rows)
    assert [len(saved[name]) for name in (saved_rows.QUALITY, saved_rows.REAL)] == [3, 2]
    assert all(row["version"] == VERSION for row in saved[saved_rows.QUALITY])
    (tmp_path / "new.json").write_text(json.dumps([asdict(replace(ROW, accuracy=0.97))]))
    saved_rows.add_rows(saved_rows.read_rows(tmp_path / "new.json"), "two cores", rows)
    accuracies = [row["accuracy"] for row in saved_rows.load_rows(rows)[saved_rows.QUALITY]]
    assert accuracies == [0.97, 0.94, 0.5]
    saved_rows.add_rows([asdict(replace(ROW, seed=2, version="0.0.1"))], "two cores", rows)
    assert len(saved_rows.load_rows(rows)[saved_rows.QUALITY]) == 3
    with pytest.raises(InputError, match="colour"):
        saved_rows.add_rows([{"colour": "red"}], "two cores", rows)
    (tmp_path / "new.json").write_text("text")
    with pytest.raises(InputError, match="add"):
        saved_rows.read_rows(tmp_path / "new.json")


def test_a_comparison_with_training_has_its_table(tmp_path: Path) -> None:
    """Rows of the methods, the dense network above them; a row with an error is left out."""
    row: dict[str, object] = {
        **dict.fromkeys(saved_rows.FIELDS[saved_rows.PRICE], 0),
        "case": "mnist-mlp-sgd",
        "target": "mnist-mlp",
        "method": "imp:long",
        "sparsity": 0.98,
        "actual": 0.98,
        "accuracy": 0.9813,
        "dense_accuracy": 0.9837,
        "needs": {"data": "labelled", "labels": True, "gradients": True, "training": True},
    }
    saved_rows.add_rows([row, {**row, "method": "slimming", "error": "no"}], "two cores", tmp_path)
    lines = tables.price_table(saved_rows.load_rows(tmp_path))
    text = "\n".join(lines)
    assert "| *dense network* |  | 98.37 |" in text
    assert "| imp:long | labels, training | 98.13 |" in text
    assert "slimming" not in text
    assert "98.13" in "\n".join(tables.training_table(saved_rows.load_rows(tmp_path)))


def test_the_table_of_other_tools_says_why_figures_are_missing(tmp_path: Path) -> None:
    """A tool that failed is a note below it, until it is measured."""
    latency = {batch: {"speed_up": [1.0, 2.0, 3.0]} for batch in ("1", "64")}
    failed = peers.Row("folding", "resnet20", 0.5, 0, 8, note="out of order")
    measured = replace(
        failed,
        note="",
        params=30,
        macs=50,
        accuracy=0.5,
        dense={"params": 100, "macs": 100, "accuracy": 0.8},
        latency_torch=latency,
        latency_onnx=latency,
        seconds=1.2,
        data="none",
    )
    saved_rows.add_rows([asdict(failed)], "two cores", tmp_path)
    lines = tables.peers_table(saved_rows.load_rows(tmp_path))
    assert "- resnet20, folding: out of order" in lines
    saved_rows.add_rows([asdict(measured)], "two cores", tmp_path)
    lines = tables.peers_table(saved_rows.load_rows(tmp_path))
    assert any("50.0 % | 30.0 % | 50.00 % (80.00 %) | 2.00× / 2.00×" in line for line in lines)
    assert len(saved_rows.load_rows(tmp_path)[saved_rows.PEERS]) == 1


def test_language_models_have_their_table(tmp_path: Path) -> None:
    """The lower perplexity comes first, and one row of a method and text replaces another."""
    row: dict[str, object] = {
        **dict.fromkeys(saved_rows.FIELDS[saved_rows.LANGUAGE], 0),
        "network": "a.gguf",
        "sparsity": "0.5",
        "method": "swaps",
        "calibration": "self-text",
        "perplexity": 80.0,
        "dense": 40.0,
    }
    worse = {**row, "method": "wanda-rows", "perplexity": 100.0}
    saved_rows.add_rows([{**row, "perplexity": 120.0}, worse, row], "two cores", tmp_path)
    lines = tables.language_table(saved_rows.load_rows(tmp_path))
    assert lines[2].startswith("| 0.5 | swaps | self-text | 80.0 | 2.00 |")
    assert lines[3].startswith("| 0.5 | wanda-rows | self-text | 100.0 | 2.50 |")
    assert len(lines) == 8
