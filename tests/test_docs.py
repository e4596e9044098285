"""What the documents say is so: code runs, commands parse, links lead somewhere, pages build."""

from __future__ import annotations

import doctest
import importlib
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run_here
from documents import PAGES, ROOT, anchors, blocks, commands, links
from typer.main import get_command

import gaprune
from gaprune.cli import app, load_command
from gaprune.comparison.comparison_request import make_request
from gaprune.criteria import CRITERIA
from gaprune.runs.job import make_job

LIMITS: dict[str, Any] = {
    "generations": 1,
    "steps": 2,
    "batch": 8,
    "population": 2,
    "offspring": 2,
    "calibration_count": 32,
    "validation_count": 32,
}
"""What every search in the documents is cut short by, where it does not say itself."""
IMAGES = "torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(3600, 3)"
BEFORE = {
    "README.md": f"import torch\nmodel = torch.nn.Sequential({IMAGES})\n",
    "docs/sparse-format.md": "import torch\n",
    "docs/tutorial.md": (
        "import gaprune\nfrom net import make\n"
        "shown = gaprune.InputOptions(shape=(1, 28, 28), range=(0, 1))\n"
        "gaprune.prune(make(), sparsity=0.95, inputs=shown, method='magnitude', out='run')\n"
    ),
}
"""Page → what its reader has already."""
WITH_CODE = [page for page in PAGES if any(one.kind == "python" for one in blocks(page))]
SLOW = ("docs/how-to/export.md",)  # torch.export and ONNX Runtime take their time to begin
WITH_COMMANDS = [page for page in PAGES if any(True for _ in commands(page))]
WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "gaprune").rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]
OWN = (
    *("out", "overwrite", "no_save", "config", "as_json", "quiet", "profile", "dry_run"),
    *("list_methods", "tensorboard", "pairs"),
)
"""Options that a command keeps to itself: what is asked for does not depend on them."""
COMMANDS: Any = get_command(app)
COMMANDS.commands = {name: load_command(name) for name in COMMANDS.commands}
Play = Callable[[str], dict[str, Any]]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Play]:
    """Run a page's Python in an empty folder, one block after the other in one namespace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(gaprune, "prune", _shortened(gaprune.prune))
    before, own = set(sys.modules), dict(CRITERIA)
    yield partial(_play, tmp_path)
    CRITERIA.clear()
    CRITERIA.update(own)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def _shortened(prune: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given, **stated: prune(*given, **{**LIMITS, **stated})


def _play(folder: Path, page: str) -> dict[str, Any]:
    own: dict[str, Any] = {"__name__": page}
    ready = page not in BEFORE
    for place, block in enumerate(one for one in blocks(page) if one.kind == "python"):
        code = compile(block.text, f"{page}, block {place}", "exec")
        if block.title is not None and block.title.endswith(".py"):
            (folder / block.title).write_text(block.text, encoding="utf-8")
            if block.runs:
                runpy.run_path(str(folder / block.title))
        elif block.runs:
            if not ready:
                exec(BEFORE[page], own)  # noqa: S102 - the page's own reader
                ready = True
            exec(code, own)  # noqa: S102 - it is the project's own page
    return own


@pytest.mark.parametrize(
    "page", [pytest.param(one, marks=pytest.mark.slow if one in SLOW else ()) for one in WITH_CODE]
)
def test_python_in_the_documents_runs(page: str, play: Play) -> None:
    """Every block of Python runs as it stands, but those that say why not."""
    assert play(page)


def test_code_in_the_documents_is_looked_at() -> None:
    """The pages are found, and code and commands in them."""
    assert {"README.md", "CONTRIBUTING.md", "docs/tutorial.md"} <= set(WITH_CODE)
    assert sum(len(list(commands(page))) for page in PAGES) > 60


def test_a_criterion_takes_ten_lines(play: Play) -> None:
    """What CONTRIBUTING.md adds is a method of `prune` and `compare` at once, and masks by it."""
    play("CONTRIBUTING.md")
    text = "".join(one.text for one in blocks("CONTRIBUTING.md") if one.kind == "python")
    lines = [line for line in text.splitlines() if line and "import" not in line]
    assert len(lines) <= 10
    torch.manual_seed(0)
    first, last = torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)
    model = torch.nn.Sequential(first, torch.nn.ReLU(), last)
    shown = gaprune.InputOptions(range=(0, 1))
    result = gaprune.prune(model, sparsity=0.5, inputs=shown, method="squared", scope="global")
    scores = torch.cat([(first.weight**2 / 6).flatten(), (last.weight**2 / 8).flatten()])
    wanted = scores >= scores.sort(descending=True).values[35]
    assert torch.cat([mask.flatten() for mask in result.masks.values()]).equal(wanted)
    found = gaprune.compare(
        model, sparsity=0.5, methods=("squared", "squared-layer"), inputs=shown, **LIMITS
    )
    assert [row.method for row in found.rows] == ["squared", "squared-layer"]


def _parsed(words: list[str], *, whole: bool) -> Any:  # noqa: ANN401 - typer's classes are its own
    """Return the context of a command; what prose leaves out is no error there."""
    if words[0].startswith("-"):
        known = {name for one in COMMANDS.params for name in one.opts}
        assert words[0] in known, words[0]
        return _parsed(words[1:], whole=whole) if words[1:] and words[1] != "…" else None
    command = COMMANDS.commands[words[0]]
    try:
        return command.make_context(words[0], words[1:])
    except Exception as error:
        if not whole and type(error).__name__ in ("MissingParameter", "BadOptionUsage"):
            return None
        raise


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_commands_in_the_documents_are_understood(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands and options exist, and the values of a whole one obey the rules of its settings."""
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        if block.title is not None and block.title.endswith(".py"):
            (tmp_path / block.title).write_text(block.text, encoding="utf-8")
    readers: dict[str, Callable[[dict[str, Any]], object]] = {
        "prune": make_job,
        "compare": make_request,
    }
    for words, whole in commands(page):
        if "--help" in words or "-h" in words:
            assert words[0] in COMMANDS.commands
            continue
        context = _parsed(words, whole=whole)
        if not whole or context is None or words[0] not in readers or "--config" in words:
            continue
        stated = {
            name: value
            for name, value in context.params.items()
            if name not in OWN and value not in (None, [], ())
        }
        if not context.params.get("list_methods"):
            assert readers[words[0]](stated), words


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_in_docstrings_are_so(module: str) -> None:
    """Every docstring's session prints what it says."""
    ran = doctest.testmod(importlib.import_module(module))
    assert ran.attempted
    assert not ran.failed


@pytest.mark.parametrize("page", PAGES)
def test_modules_and_targets_of_make_that_are_named_exist(page: str) -> None:
    """`python -m benchmarks.X` is a module, and `make X` is in the Makefile."""
    for module in set(re.findall(r"python -m (benchmarks(?:\.\w+)+)", PAGES[page])):
        assert find_spec(module), module
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = [one.text for one in blocks(page)] + re.findall(r"`(make [^`]+)`", PAGES[page])
    for text in code:
        for name in re.findall(r"^(?:.*&& )?make ([a-z][a-z-]*)", text, re.MULTILINE):
            assert name in known, f"make {name}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """What a page links to inside the project is there, and so is the heading."""
    for path, anchor in links(page):
        assert (ROOT / path).exists(), f"{page}: {path}"
        if anchor:
            assert anchor in anchors(path), f"{page}: {path}#{anchor} of {sorted(anchors(path))}"
        if page.startswith("docs/"):
            assert path.startswith("docs/"), f"{page}: {path} is no page of the site"


def test_every_page_is_in_the_contents_once() -> None:
    """The site's contents name every page under docs/, and nothing else."""
    contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    named = re.findall(r": (\S+\.md)$", contents, re.MULTILINE)
    assert sorted(named) == sorted(page[5:] for page in PAGES if page.startswith("docs/"))


def _as_built(page: str) -> str:
    """Return a page's source as MkDocs is given it."""
    script = runpy.run_path(str(ROOT / "scripts" / "command_reference.py"))
    return str(script["on_page_markdown"](PAGES[page]))


def test_the_reference_has_every_command_and_option() -> None:
    """The page of commands is made from the commands, and each of these shows how it is used."""
    page = _as_built("docs/reference/commands.md")
    assert "<!--" not in page
    for name, command in COMMANDS.commands.items():
        assert f"\n## gaprune {name}\n" in page
        assert "Example: gaprune" in command.help, name
        for one in command.params:
            assert one.param_type_name == "argument" or f"`{one.opts[0]}`" in page
    assert "| `--max-drop` `NUMBER` | instead: remove as much as" in page


def test_files_of_the_root_are_pages_with_links_that_hold() -> None:
    """The changelog and CONTRIBUTING.md become pages, and their links lead from docs/ then."""
    page = _as_built("docs/contributing.md")
    assert page.startswith("# Contributing")
    assert "](how-to/plug-ins.md)" in page


def test_examples_in_the_help_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    """What a command's own help shows as an example parses."""
    for name, command in COMMANDS.commands.items():
        for example in re.findall(r"Example: gaprune (.+)", command.help):
            assert example.split()[0] == name
            assert _parsed(example.split(), whole=True)
        assert run_here([name, "--help"], capsys).code == 0


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    """MkDocs has nothing to complain about, and a reader's browser fetches nothing."""
    pytest.importorskip("material", reason="needs pip install 'gaprune[docs]'")
    pytest.importorskip("mkdocstrings", reason="needs pip install 'gaprune[docs]'")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 20
    fetched = re.compile(
        r"<(?:script|img|iframe)[^>]*src=\"(?:https?:)?//|<link[^>]*href=\"https?:"
    )
    for page in pages:
        assert not fetched.findall(page.read_text(encoding="utf-8")), page.name
