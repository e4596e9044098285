"""The content of a report: complete, self-contained, escaped, and made from any run."""

from __future__ import annotations

import html
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Run
from report_runs import NAUGHTY, TINY, Ids, Pictures, built, labelled, named, pictures, reseal
from torch import nn

from gaprune import InputOptions, compare, export, prune, resume
from gaprune.comparison.comparison_report import make_report
from gaprune.errors import GapruneError, InputError
from gaprune.io.run_files import FILES, REPORT, REPORT_DATA
from gaprune.report import report_of, write_report
from gaprune.report.data import confusion_of

VOID = {"meta", "link", "br", "img", "input", "hr", "wbr"}
SHAPES = {"use", "line", "polyline", "path", "rect", "circle"}
SHORT: dict[str, Any] = {**TINY, "calibration": ("procedural",)}
TOKENS = InputOptions((7,), kind="tokens", vocabulary=30)


class Page(HTMLParser):
    """The words, ids, addresses and labels of a page; every tag must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
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
        attributes = dict(attrs)
        assert not [name for name in attributes if name.startswith("on")]
        self.ids += [str(attributes["id"])] if "id" in attributes else []
        self.labels += [str(attributes["aria-label"])] if "aria-label" in attributes else []
        self.addresses += [str(attributes[name]) for name in ("src", "href") if name in attributes]
        self.scripts += tag == "script"
        if tag == "img":
            self.images.append(attributes.get("alt"))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SHAPES, tag
        self.handle_starttag(tag, attrs)
        self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.words += f" {data}".replace("\u00a0", " ")


def page_of(folder: Path) -> Page:
    """Return the report of a run directory."""
    return Page((folder / REPORT).read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with labels, on images."""
    return pictures(tmp_path_factory.mktemp("runs") / "pictures")


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    """Its report."""
    return page_of(folder)


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    for name in FILES:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    return tmp_path


def change(path: Path, **values: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    reseal(path.parent)


def test_a_run_with_labels_has_every_section(folder: Path, page: Page) -> None:
    """Only the Pareto front is missing; every id is unique and every image has a description."""
    sections = {"methods", "search", "inputs", "weights", "classes", "layers", "again"}
    assert sections <= set(page.ids)
    assert "front" not in page.ids
    assert len(page.ids) == len(set(page.ids))
    assert {"magnitude", "lamp", "torch"} <= set(page.words.split())
    assert {"conv.weight", "head.weight"} <= set(
        page.words.replace(". ", ".").split()
    )  # with <wbr>
    assert len(page.images) > 36
    assert all(page.images)


def test_the_figures_are_those_of_the_record(folder: Path, page: Page) -> None:
    """Sparsity, accuracy, agreement, gain, hashes and densities are those of result.json."""
    record = json.loads((folder / "result.json").read_text())
    assert f"{100 * record['gain']:+.2f}" in page.words.replace("−", "-")
    for value in (
        record["sparsity"]["actual"],
        record["accuracy"]["pruned"],
        record["agreement"]["validation"],
        *(layer["kept"] / layer["total"] for layer in record["layers"]),
    ):
        assert f"{100 * value:.2f} %" in page.words
    for key in ("weights_sha256", "seed", "target"):
        assert str(record[key]) in page.words
    for name, score in record["baselines"].items():
        figure = f"{100 * score['agreement']:.2f}\u00a0%"
        assert [t for t in page.labels if t.startswith(f"{name}, agree") and t.endswith(figure)]


def test_a_page_is_self_contained(folder: Path, page: Page) -> None:
    """No address leads out of the file, and its policy forbids other scripts."""
    text = (folder / REPORT).read_text()
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert not [word for word in ("http:", "https:", "@import") if word in text]
    assert "default-src &#39;none&#39;" in text
    assert page.scripts == 1
    assert {link[1:] for link in page.addresses if link.startswith("#")} <= set(page.ids)


def test_confusion_matrices_count_every_test_input(folder: Path) -> None:
    """Rows add up to the labels, and the diagonal gives the accuracy."""
    record = json.loads((folder / "result.json").read_text())
    confusion = json.loads((folder / REPORT_DATA).read_text())["confusion"]
    for name in ("dense", "pruned"):
        matrix = torch.tensor(confusion["matrices"][name])
        assert matrix.sum(1).tolist() == confusion["totals"] == [16, 16, 16]
        assert matrix.diagonal().tolist() == confusion["correct"][name]
        assert int(matrix.trace()) / 48 == pytest.approx(record["accuracy"][name])


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 1), (2, 2000)])
def test_outputs_that_are_not_classes_have_no_confusion(shape: tuple[int, ...]) -> None:
    """Sequences of logits, single numbers and too many classes are not counted."""
    assert confusion_of(torch.tensor([0, 1]), dense=torch.rand(shape)) is None
    confusion = confusion_of(torch.tensor([0, 1]), dense=torch.eye(2, 500))
    assert confusion is not None
    assert confusion["matrices"] is None  # more than anybody reads
    assert confusion["correct"]["dense"][:3] == [1, 1, 0]


def test_names_are_escaped(tmp_path: Path) -> None:
    """A layer, a folder, a criterion or a target named like markup is printed as text."""
    run = named(tmp_path / "run<b>")
    record = json.loads((run / "result.json").read_text())
    change(
        run / "result.json",
        target=NAUGHTY,
        origin=NAUGHTY,
        provenance={**record["provenance"], "validation": NAUGHTY, "sources": [NAUGHTY]},
        versions={NAUGHTY: NAUGHTY},
        baselines={NAUGHTY: dict(record["baselines"]["lamp"])},
        best_baseline=NAUGHTY,
    )
    change(run / REPORT_DATA, command=NAUGHTY)
    (run / "config.toml").write_text(f"target = {json.dumps(NAUGHTY)}\n")
    reseal(run)
    text = write_report(run).read_text()
    page = Page(text)
    assert page.scripts == text.count("<script") == 1
    assert "<b>alert" not in text
    assert page.words.count(NAUGHTY) >= 6
    assert "run<b>" in page.words
    assert "classes" not in page.ids  # the run has no labels


def inject(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Return JSON with markup behind every text in it."""
    if isinstance(value, list):
        return [inject(part) for part in value]
    if isinstance(value, dict):
        return {key: inject(part) for key, part in value.items()}
    return value + NAUGHTY if isinstance(value, str) else value


def test_markup_in_any_field_stays_text(copied: Path) -> None:
    """Of the record and of the report's data, field by field: the page has one script, its own."""
    tried = 0
    for path in (copied / "result.json", copied / REPORT_DATA):
        content = path.read_text()
        for key, value in json.loads(content).items():
            if inject(value) == value:
                continue
            change(path, **{key: inject(value)})
            try:
                text = report_of(copied)
            except GapruneError:  # no other text is a value of this field
                continue
            finally:
                path.write_text(content)
            tried += 1
            assert Page(text).scripts == text.count("<script") == 1, key
    assert tried > 4


@pytest.mark.parametrize("method", ["magnitude", "lamp"])
def test_a_one_shot_run_has_no_search(tmp_path: Path, method: str) -> None:
    """Its own row of the methods is there once."""
    page = page_of(pictures(tmp_path / "run", method=method))
    assert "search" not in page.ids
    assert "Gain" not in page.words
    assert len([label for label in page.labels if label.startswith(f"{method}, agreement")]) == 1


@pytest.mark.parametrize(
    ("option", "word"), [("pareto", "front.safetensors"), ("repair", "evolved, repaired")]
)
def test_fronts_and_repair_are_reported(tmp_path: Path, option: str, word: str) -> None:
    """A search over many sparsities has a front; a repaired network its own row."""
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    inputs = InputOptions((6,), range=(0, 1))
    settings = {**SHORT, "sparsity": 0.6, option: True}
    prune(model, inputs=inputs, out=tmp_path / "run", **settings)
    page = page_of(tmp_path / "run")
    assert ("front" in page.ids) == (option == "pareto")
    assert word in page.words


def test_token_ids_are_listed_as_numbers(tmp_path: Path) -> None:
    """Sequences have no image."""
    prune(built(Ids), inputs=TOKENS, out=tmp_path / "run", sparsity=0.5, **SHORT)
    report_data = json.loads((tmp_path / "run" / REPORT_DATA).read_text())
    ids = report_data["batches"][0]["samples"][0]["values"]
    assert " ".join(map(str, ids)) in page_of(tmp_path / "run").words


@pytest.mark.parametrize("file", [REPORT_DATA, "history.jsonl", "config.toml", "mask.safetensors"])
def test_a_missing_file_costs_only_its_section(copied: Path, file: str) -> None:
    """The rest of the page is made from the other files; a damaged file is refused."""
    (copied / file).unlink()
    page = Page(report_of(copied))
    assert {"methods", "layers", "again"} <= set(page.ids)
    assert ("search" in page.ids) == (file != "history.jsonl")
    (copied / file).write_bytes(b"\xff{not it")
    with pytest.raises(InputError, match=re.escape(file)):
        report_of(copied)


def test_the_record_alone_is_enough_for_a_page(copied: Path) -> None:
    """All other files may be missing."""
    for name in set(FILES) - {"result.json"}:
        (copied / name).unlink()
    assert {"methods", "layers", "again"} <= set(Page(report_of(copied)).ids)


@pytest.mark.parametrize(
    ("content", "match"),
    [(None, r"result\.json"), ("schema", r"schema 1"), ("{", "damaged"), ("[]", "result")],
)
def test_folders_without_a_valid_result_are_refused(
    copied: Path, content: str | None, match: str
) -> None:
    """A missing, damaged or old result is refused by the report and by an export."""
    path = copied / "result.json"
    if content == "schema":
        change(path, schema=1)
    elif content is None:
        path.unlink()
    else:
        path.write_text(content)
    for read in (write_report, lambda folder: export(folder, "dense", folder / "out")):
        with pytest.raises(InputError, match=match):
            read(copied)


def test_a_defect_of_the_report_does_not_lose_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the report, and all other files are saved."""

    def fail(*_: object, **__: object) -> Path:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("gaprune.runs.open_directory.write_report", fail)
    with pytest.raises(GapruneError, match=r"report\.html.*a defect"):
        pictures(tmp_path / "run")
    files = {path.name for path in (tmp_path / "run").iterdir() if path.is_file()}
    assert files == set(FILES) - {REPORT}


def test_a_resumed_run_stores_the_same_report_data(tmp_path: Path) -> None:
    """`report.json` is equal, byte for byte, to that of an uninterrupted run."""
    whole = pictures(tmp_path / "whole", preset="black-box", generations=3)
    part = pictures(tmp_path / "part", preset="black-box", generations=1)
    resume(part, model=built(Pictures), test=labelled(2, 8, 8), generations=3)
    assert (part / REPORT_DATA).read_bytes() == (whole / REPORT_DATA).read_bytes()


def test_a_large_network_has_a_small_report(copied: Path) -> None:
    """400 layers and 500 generations take less than 2 MB."""
    layers = [{"name": f"blocks.{n}.weight", "total": 4096, "kept": 40 + n} for n in range(400)]
    change(copied / "result.json", layers=layers)
    line = json.loads((copied / "history.jsonl").read_text().splitlines()[0])
    lines = [{**line, "generation": n, "evaluations": n, "seconds": n} for n in range(500)]
    (copied / "history.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    reseal(copied)
    text = report_of(copied)
    assert len(text.encode()) < 2_000_000
    words = Page(text).words
    assert {"360 more", "100 more"} <= {f"{n} more" for n in (100, 360) if f"{n} more" in words}
    assert "history.jsonl" in words


@pytest.mark.slow
def test_a_comparison_has_a_report(tmp_path: Path) -> None:
    """It lists every method at every sparsity, and is the same when it is made again."""
    comparison = compare(
        built(Pictures),
        sparsity=(0.5, 0.8),
        methods=("magnitude", "lamp", "evolved", "imp:linear"),
        seeds=(0, 1),
        inputs=InputOptions((2, 8, 8), kind="image", range=(0, 1)),
        test=labelled(2, 8, 8),
        out=tmp_path / "rows",
        **TINY,
    )
    text = (tmp_path / "rows" / REPORT).read_text()
    page = Page(text)
    assert {"sparsity", "table", "again"} <= set(page.ids)
    for summary in comparison.summaries:
        assert summary.method in page.words
        for cell in summary.cells.values():
            assert f"{100 * cell.score:.1f}" in page.words
    assert "2 seeds" in " ".join(page.labels)
    assert "training data" in page.words  # what imp:linear lacks
    assert comparison.caption in page.words
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert make_report(tmp_path / "rows").read_text() == text


def test_the_command_makes_reports_of_runs_and_comparisons(
    folder: Path, tmp_path: Path, run: Run
) -> None:
    """It prints path and size; the report of the same files is the same, byte for byte."""
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    (folder / REPORT).unlink()
    ran = run("report", str(folder), "--json")
    assert ran.code == 0
    size = (folder / REPORT).stat().st_size
    assert json.loads(ran.out) == {"report": str(folder / REPORT), "bytes": size}
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
    rows = tmp_path / "rows"
    compare(built(Ids), sparsity=0.5, methods="magnitude", inputs=TOKENS, out=rows)
    ran = run("report", str(rows))
    assert ran.code == 0
    assert str(rows / REPORT) in ran.out
    ran = run("report", str(tmp_path / "nothing"))
    assert (ran.code, "result.json" in ran.err) == (2, True)


def steps_of(folder: Path) -> dict[str, str]:
    """Return the next steps of a report: title → code, as a reader copies it."""
    pattern = r'<div class="step[^"]*"><p>(.*?)</p>.*?<code>(.*?)</code>'
    found = re.findall(pattern, (folder / REPORT).read_text(), re.DOTALL)
    return {html.unescape(title): html.unescape(code) for title, code in found}


FACTORY = """from torch import nn
def make():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
"""


def test_the_steps_of_a_report_work_when_pasted(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading and repeating, with relative paths, blanks, a negative range and settings."""
    project = tmp_path / "my project"
    project.mkdir()
    monkeypatch.chdir(project)
    (project / "net.py").write_text(FACTORY)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    torch.save(net.state_dict(), "my weights.pt")
    words = ["prune", "net.py:make", "--weights", "my weights.pt", "--range", "-1,1"]
    words += ["--sparsity", "0.5", "--method", "magnitude", "--set", "validation_count=64"]
    assert run(*words, "--set", "calibration_count=64", "--out", "runs/a run").code == 0
    steps = steps_of(Path("runs/a run"))
    monkeypatch.chdir(tmp_path)
    (enter, load), (export_step, repeat) = list(steps.values())[:2], list(steps.values())[2:]
    assert shlex.split(enter) == ["cd", str(project)]
    monkeypatch.chdir(project)
    names: dict[str, Any] = {}
    exec(load, names)  # noqa: S102 - what a reader pastes
    assert int(names["model"].get_parameter("0.weight").count_nonzero()) < 48
    assert shlex.split(export_step)[:3] == ["gaprune", "export", "runs/a run"]
    assert run(*shlex.split(repeat)[1:]).code == 0
    masks = [Path(f"runs/a run{end}/mask.safetensors").read_bytes() for end in ("", "-again")]
    assert masks[0] == masks[1]


def test_the_steps_of_a_network_in_memory_are_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They load into the user's network, export it and repeat the run."""
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "run", method="lamp")
    load, _, repeat = steps_of(tmp_path / "run").values()
    names = {"model": built(Pictures)}
    exec(load.replace("model = ...", "pass"), names)  # noqa: S102 - what a reader pastes
    assert int(names["model"].get_parameter("head.weight").count_nonzero()) < 3 * 144
    names["model"] = built(Pictures)
    exec(repeat, names)  # noqa: S102 - the same
    folders = (tmp_path / "run", tmp_path / "run-again")
    masks = [(folder / "mask.safetensors").read_bytes() for folder in folders]
    assert masks[0] == masks[1]
