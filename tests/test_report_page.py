"""A report holds what it should, needs nothing else, trusts no text, and is made of older runs."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Run
from report_runs import NAUGHTY, TINY, Ids, Pictures, labelled, made, named, pictures
from torch import nn

from gaprune import InputOptions, compare, export, prune, resume
from gaprune.comparison.comparison_report import make_report
from gaprune.errors import GapruneError, InputError
from gaprune.io.run_files import FILES, REPORT, REPORT_DATA
from gaprune.report import report_of, write_report
from gaprune.report.data import confusion_of

VOID = {"meta", "link", "br", "img", "input", "hr", "wbr"}
DRAWN = {"use", "line", "polyline", "path", "rect", "circle"}


class Page(HTMLParser):
    """What a page says: its words, ids, headings, addresses, and whether its tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.headings: list[str] = []
        self.addresses: list[str] = []
        self.scripts = 0
        self.images: list[str | None] = []
        self.labels: list[str] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        stated = dict(attrs)
        assert not [name for name in stated if name.startswith("on")]
        self.ids += [str(stated["id"])] if "id" in stated else []
        self.addresses += [str(stated[one]) for one in ("src", "href") if one in stated]
        self.labels += [str(stated["aria-label"])] if "aria-label" in stated else []
        self.scripts += tag == "script"
        if tag == "img":
            self.images.append(stated.get("alt"))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in DRAWN, tag
        self.handle_starttag(tag, attrs)
        self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("script", "style"):
            return
        self.words += f" {data}"
        if self._open and re.fullmatch("h[1-6]", self._open[-1]):
            self.headings.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with labels, on pictures."""
    return pictures(tmp_path_factory.mktemp("runs") / "pictures")


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    """Its report."""
    return Page((folder / REPORT).read_text())


def test_every_run_has_a_report_with_every_section(page: Page) -> None:
    """Of a run with labels, all but the Pareto front."""
    sections = {"methods", "search", "inputs", "weights", "classes", "layers", "again"}
    assert sections <= set(page.ids)
    assert "front" not in page.ids
    assert len(page.ids) == len(set(page.ids))
    for words in (
        "Methods at the same budget",
        "Agreement on the validation inputs",
        "Fitness on the calibration inputs",
        "Density by layer",
        "Density maps",
        "Dense network",
        "Pruned network",
        "Calibration inputs",
        "Validation inputs",
        "config.toml",
        "bit-identical",
        "No real data",
    ):
        assert words in page.words, words
    assert {"conv.weight", "head.weight", "magnitude", "lamp", "torch"} <= set(page.words.split())


def test_the_figures_are_those_of_the_record(folder: Path, page: Page) -> None:
    """Sparsity, accuracy, agreement, margin, hashes: what is read is what was measured."""
    record = json.loads((folder / "result.json").read_text())
    words = page.words.replace("\u00a0", " ")
    assert f"{100 * record['sparsity']['actual']:.2f} %" in words
    assert f"{100 * record['accuracy']['pruned']:.2f} %" in words
    assert f"{100 * record['agreement']['validation']:.2f} %" in words
    assert f"{100 * record['gain']:+.2f}" in words.replace("−", "-")
    for known in ("weights_sha256", "seed", "target"):
        assert str(record[known]) in words
    for layer in record["layers"]:
        assert f"{100 * layer['kept'] / layer['total']:.2f} %" in words
    for name, score in record["baselines"].items():
        told = f"{name}, agreement on the validation inputs: {100 * score['agreement']:.2f}\u00a0%"
        assert told in page.labels


def test_it_needs_nothing_else(folder: Path, page: Page) -> None:
    """No address leads out of the file, and a policy inside forbids what might."""
    text = (folder / REPORT).read_text()
    assert not [one for one in page.addresses if not one.startswith(("#", "data:"))]
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert "default-src &#39;none&#39;" in text
    assert page.scripts == 1
    assert {one[1:] for one in page.addresses if one.startswith("#")} <= set(page.ids)


def test_every_picture_says_what_it_is(page: Page) -> None:
    """Somebody who cannot see it is told."""
    assert len(page.images) > 36
    assert all(page.images)


def test_the_confusion_counts_every_test_input(folder: Path) -> None:
    """Rows add up to the labels, the diagonal to the accuracy."""
    record = json.loads((folder / "result.json").read_text())
    kept = json.loads((folder / REPORT_DATA).read_text())["confusion"]
    for name in ("dense", "pruned"):
        pairs = torch.tensor(kept["pairs"][name])
        assert pairs.sum(1).tolist() == kept["of"] == [16, 16, 16]
        assert pairs.diagonal().tolist() == kept["right"][name]
        assert int(pairs.trace()) / 48 == pytest.approx(record["accuracy"][name])


def test_what_is_no_class_is_not_counted() -> None:
    """Sequences of logits, one number, and more classes than anybody reads pair by pair."""
    labels = torch.tensor([0, 1])
    assert confusion_of(labels, dense=torch.rand(2, 3, 4)) is None
    assert confusion_of(labels, dense=torch.rand(2, 1)) is None
    assert confusion_of(labels, dense=torch.rand(2, 2000)) is None
    found = confusion_of(labels, dense=torch.eye(2, 500))
    assert found is not None
    assert found["pairs"] is None
    assert found["right"]["dense"][:3] == [1, 1, 0]


def test_names_are_text_whatever_they_hold(tmp_path: Path) -> None:
    """A layer, a folder and a target named like markup: shown, and nothing more."""
    run = named(tmp_path / "run<b>")
    record = json.loads((run / "result.json").read_text())
    record["target"] = record["origin"] = record["provenance"]["validation"] = NAUGHTY
    record["provenance"]["sources"] = [NAUGHTY]
    record["versions"] = {NAUGHTY: NAUGHTY}
    record["baselines"] = {NAUGHTY: dict(record["baselines"]["lamp"])}
    record["best_baseline"] = NAUGHTY
    (run / "result.json").write_text(json.dumps(record))
    (run / "config.toml").write_text(f"target = {json.dumps(NAUGHTY)}\n")
    report_data = json.loads((run / REPORT_DATA).read_text())
    report_data["command"] = NAUGHTY
    (run / REPORT_DATA).write_text(json.dumps(report_data))
    text = write_report(run).read_text()
    page = Page(text)
    assert page.scripts == 1
    assert text.count("<script") == 1
    assert "<b>alert" not in text
    assert page.words.count(NAUGHTY) >= 6
    assert "run<b>" in page.words


def test_without_labels_the_sections_about_them_are_left_out(tmp_path: Path) -> None:
    """And the map of pixels is there, for a linear layer on pictures."""
    page = Page((named(tmp_path / "run") / REPORT).read_text())
    assert "classes" not in page.ids
    assert "Test accuracy" not in page.words
    assert "Pixels" in page.words


@pytest.mark.parametrize("method", ["magnitude", "lamp"])
def test_a_one_shot_run_has_no_search(tmp_path: Path, method: str) -> None:
    """Its own row is there once."""
    page = Page((pictures(tmp_path / "run", method=method) / REPORT).read_text())
    assert "search" not in page.ids
    assert "Gain" not in page.words
    rows = [label for label in page.labels if label.startswith(f"{method}, agreement")]
    assert len(rows) == 1


def test_a_front_and_a_repair_are_shown(tmp_path: Path) -> None:
    """Each of them where there is one."""

    class Normed(nn.Sequential):
        """With statistics to repair."""

        def __init__(self) -> None:
            super().__init__(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    options = InputOptions((6,), range=(0, 1))
    for name, more in (("front", {"pareto": True}), ("repair", {"repair": True})):
        settings: dict[str, Any] = {**TINY, "sparsity": 0.6, "calibration": ("procedural",), **more}
        prune(made(Normed).eval(), inputs=options, out=tmp_path / name, **settings)
    front = Page((tmp_path / "front" / REPORT).read_text())
    assert "front" in front.ids
    assert "Pareto front" in front.headings
    assert "evolved, repaired" in Page((tmp_path / "repair" / REPORT).read_text()).words


def test_token_ids_are_shown_as_numbers(tmp_path: Path) -> None:
    """There is no picture of them."""
    options = InputOptions((7,), kind="tokens", vocabulary=30)
    settings: dict[str, Any] = {**TINY, "calibration": ("procedural",)}
    prune(made(Ids), inputs=options, out=tmp_path / "run", sparsity=0.5, **settings)
    report_data = json.loads((tmp_path / "run" / REPORT_DATA).read_text())
    ids = report_data["shown"][0]["samples"][0]["values"]
    assert " ".join(map(str, ids)) in Page((tmp_path / "run" / REPORT).read_text()).words


def test_a_report_is_made_anew_of_the_same_files(folder: Path) -> None:
    """Byte for byte; nothing else in the folder changes."""
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    (folder / REPORT).unlink()
    assert write_report(folder) == folder / REPORT
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


@pytest.mark.parametrize("gone", [REPORT_DATA, "history.jsonl", "config.toml", "mask.safetensors"])
def test_what_an_older_run_does_not_have_is_left_out(
    folder: Path, tmp_path: Path, gone: str
) -> None:
    """One file less, or damaged, is a section less."""
    for name in FILES:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / gone).unlink()
    missing = Page(report_of(tmp_path))
    (tmp_path / gone).write_bytes(b"\xff{not it")
    damaged = Page(report_of(tmp_path))
    for page in (missing, damaged):
        assert {"methods", "layers", "again"} <= set(page.ids)
        assert ("search" in page.ids) == (gone != "history.jsonl")


def test_a_bare_record_of_the_first_version_is_enough(folder: Path, tmp_path: Path) -> None:
    """Fields that came later may be missing."""
    record = json.loads((folder / "result.json").read_text())
    for name in ("front", "trials", "repaired", "versions", "preset", "made_by", "gain", "origin"):
        del record[name]
    (tmp_path / "result.json").write_text(json.dumps(record))
    page = Page(report_of(tmp_path))
    assert {"methods", "layers", "again"} <= set(page.ids)


def test_what_is_no_run_is_refused(tmp_path: Path, folder: Path) -> None:
    """No result, a damaged one, and one of an older version, also for an export."""
    with pytest.raises(InputError, match=r"result\.json"):
        write_report(tmp_path)
    record = json.loads((folder / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps({**record, "schema": 1}))
    for read in (write_report, lambda path: export(path, "dense", path / "out")):
        with pytest.raises(InputError, match=r"schema 1 .*0\.2"):
            read(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        write_report(tmp_path)
    (tmp_path / "result.json").write_text("[]")
    with pytest.raises(InputError, match="not the result"):
        write_report(tmp_path)


def test_a_run_is_saved_even_where_no_report_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect in a picture costs no search; it is said, and the report alone is missing."""

    def fail(*_: object, **__: object) -> Path:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("gaprune.runs.open_directory.write_report", fail)
    with pytest.raises(GapruneError, match=r"report\.html.*a defect"):
        pictures(tmp_path / "run")
    there = {path.name for path in (tmp_path / "run").iterdir() if path.is_file()}
    assert there == set(FILES) - {REPORT}


def test_a_resumed_run_has_the_sketch_of_an_undisturbed_one(tmp_path: Path) -> None:
    """Bit for bit: what is shown beside the record depends on nothing but the run."""
    whole = pictures(tmp_path / "whole", preset="black-box", generations=3)
    part = pictures(tmp_path / "part", preset="black-box", generations=1)
    model = made(Pictures)
    resume(part, model=model, test=labelled(2, 8, 8), generations=3)
    assert (part / REPORT_DATA).read_bytes() == (whole / REPORT_DATA).read_bytes()


def test_a_large_network_has_a_small_report_soon(tmp_path: Path) -> None:
    """400 layers, 500 generations: under 2 MB."""
    run = pictures(tmp_path / "run")
    record = json.loads((run / "result.json").read_text())
    record["layers"] = [
        {"name": f"blocks.{n}.attention.projection.weight", "total": 4096, "kept": 40 + n}
        for n in range(400)
    ]
    (run / "result.json").write_text(json.dumps(record))
    line = json.loads((run / "history.jsonl").read_text().splitlines()[0])
    lines = [{**line, "generation": n, "evaluations": n, "seconds": n} for n in range(500)]
    (run / "history.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    text = report_of(run)
    assert len(text.encode()) < 2_000_000
    words = Page(text).words
    assert "360 more layers" in words
    assert "100 more" in words
    assert "more points are in history.jsonl" in words


def test_a_comparison_has_a_report(tmp_path: Path) -> None:
    """Every method at every sparsity with its spread; made anew it is the same."""
    found = compare(
        made(Pictures),
        sparsity=(0.5, 0.8),
        methods=("magnitude", "lamp", "random", "evolved", "imp:linear"),
        seeds=(0, 1),
        inputs=InputOptions((2, 8, 8), kind="image", range=(0, 1)),
        test=labelled(2, 8, 8),
        out=tmp_path / "rows",
        **TINY,
    )
    text = (tmp_path / "rows" / REPORT).read_text()
    page = Page(text)
    assert {"sparsity", "table", "again"} <= set(page.ids)
    words = page.words.replace("\u00a0", " ")
    for line in found.summaries:
        assert line.method in page.words
        for cell in line.cells.values():
            assert f"{100 * cell.score:.1f}" in words
    assert "over 2 seeds" in " ".join(page.labels)
    assert "needs labelled training data" in words  # why imp:linear has no figure
    assert found.caption in page.words
    assert not [one for one in page.addresses if not one.startswith(("#", "data:"))]
    assert make_report(tmp_path / "rows").read_text() == text


def test_the_command_makes_reports_of_both_kinds(folder: Path, tmp_path: Path, run: Run) -> None:
    """It says where, and how large, and refuses what is neither."""
    (folder / REPORT).unlink()
    ran = run("report", str(folder), "--json")
    assert ran.code == 0
    assert json.loads(ran.out) == {
        "report": str(folder / REPORT),
        "bytes": (folder / REPORT).stat().st_size,
    }
    model = made(Ids)
    options = InputOptions((7,), kind="tokens", vocabulary=30)
    compare(model, sparsity=0.5, methods="magnitude", inputs=options, out=tmp_path / "rows")
    ran = run("report", str(tmp_path / "rows"))
    assert ran.code == 0
    assert ran.out.strip() == f"written to {tmp_path / 'rows' / REPORT}"
    ran = run("report", str(tmp_path / "nothing"))
    assert ran.code == 2
    assert "has no result.json" in ran.err
