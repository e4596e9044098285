"""Documents: code runs, commands and options exist, links resolve, the site builds."""

from __future__ import annotations

import doctest
import html
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

import nbformat
import pytest
import torch
import typer
from comparison_cases import QUICK
from documents import PAGES, ROOT, anchors, blocks, commands, links
from nbclient import NotebookClient
from typer.main import get_command

import gaprune
from gaprune.cli import app, load_command
from gaprune.comparison.comparison_request import make_request
from gaprune.criteria import CRITERIA
from gaprune.runs.job import make_job

BEFORE = {
    "docs/sparse-format.md": "import torch\n",
    "docs/tutorial.md": (
        "import gaprune\nfrom net import make\n"
        "inputs = gaprune.InputOptions(shape=(1, 28, 28), range=(0, 1))\n"
        "gaprune.prune(make(), sparsity=0.95, inputs=inputs, method='magnitude', out='run')\n"
    ),
}
"""Page → code that runs before its first block."""
WITH_CODE = [page for page in PAGES if any(block.kind == "python" for block in blocks(page))]
SLOW = ("docs/how-to/export.md",)  # imports of torch.export and ONNX Runtime
WITH_COMMANDS = [page for page in PAGES if any(True for _ in commands(page))]
WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "gaprune").rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]
COMMAND_ONLY = (
    *("out", "overwrite", "no_save", "config", "as_json", "quiet", "profile", "dry_run"),
    *("list_methods", "tensorboard", "pairs", "trust_code", "verbose"),
)
"""Options that are not settings of a run."""
COMMANDS: Any = get_command(app)
COMMANDS.commands = {name: load_command(name) for name in COMMANDS.commands}
OPTIONS = {
    name
    for command in (COMMANDS, *COMMANDS.commands.values())
    for option in command.params
    for name in (*option.opts, *option.secondary_opts)
} | {"--help"}
SCRIPT_OPTIONS = {
    option
    for folder in ("benchmarks", "scripts")
    for path in (ROOT / folder).rglob("*.py")
    for option in re.findall(r'"(--[a-z][a-z-]+)"', path.read_text(encoding="utf-8"))
}
OTHER_TOOLS = {"--force-reinstall", "--no-deps", "--head", "--logdir"}  # pip, Ray, TensorBoard
RunPage = Callable[[str], dict[str, Any]]


@pytest.fixture
def run_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunPage]:
    """Run the Python of a page in an empty folder, block after block in one namespace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(gaprune, "prune", _shortened(gaprune.prune))
    modules, criteria = set(sys.modules), dict(CRITERIA)
    yield partial(_run_page, tmp_path)
    CRITERIA.clear()
    CRITERIA.update(criteria)
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def _shortened(prune: Callable[..., Any]) -> Callable[..., Any]:
    # searches of the documents are short, unless their code sets the limits
    return lambda *arguments, **settings: prune(*arguments, **{**QUICK, **settings})


def _run_page(folder: Path, page: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": page}
    ready = page not in BEFORE
    python = [block for block in blocks(page) if block.kind == "python"]
    for index, block in enumerate(python):
        code = compile(block.text, f"{page}, block {index}", "exec")
        if block.title is not None and block.title.endswith(".py"):
            (folder / block.title).write_text(block.text, encoding="utf-8")
            if block.runs:
                runpy.run_path(str(folder / block.title))
        elif block.runs:
            if not ready:
                exec(BEFORE[page], namespace)  # noqa: S102 - fixed code
                ready = True
            exec(code, namespace)  # noqa: S102 - code of the documents
    return namespace


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.slow if p in SLOW else ()) for p in WITH_CODE],
)
def test_python_in_the_documents_runs(page: str, run_page: RunPage) -> None:
    """Every block runs as printed, unless a comment says why not."""
    assert run_page(page)


def test_a_criterion_takes_ten_lines(run_page: RunPage) -> None:
    """The criterion of CONTRIBUTING.md is a method of `prune`, with the masks of its scores."""
    run_page("CONTRIBUTING.md")
    text = "".join(block.text for block in blocks("CONTRIBUTING.md") if block.kind == "python")
    lines = [line for line in text.splitlines() if line and "import" not in line]
    assert len(lines) <= 10
    torch.manual_seed(0)
    first, last = torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)
    model = torch.nn.Sequential(first, torch.nn.ReLU(), last)
    inputs = gaprune.InputOptions(range=(0, 1))
    result = gaprune.prune(model, sparsity=0.5, inputs=inputs, method="squared", scope="global")
    scores = torch.cat([(first.weight**2 / 6).flatten(), (last.weight**2 / 8).flatten()])
    expected = scores >= scores.sort(descending=True).values[35]
    assert torch.cat([mask.flatten() for mask in result.masks.values()]).equal(expected)


def _parsed(words: list[str], *, whole: bool) -> Any:  # noqa: ANN401 - typer's classes are its own
    """Return the context of a command; prose may leave out arguments."""
    if words[0].startswith("-"):
        known = {name for option in COMMANDS.params for name in option.opts}
        assert words[0] in known, words[0]
        return _parsed(words[1:], whole=whole) if words[1:] and words[1] != "…" else None
    command = COMMANDS.commands[words[0]]
    try:
        return command.make_context(words[0], words[1:])
    except typer.Exit:  # an option that prints something instead, such as --help-all
        return None
    except Exception as error:
        if not whole and type(error).__name__ in ("MissingParameter", "BadOptionUsage"):
            return None
        raise


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_commands_in_the_documents_are_understood(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands and options exist, and the values of a complete command are valid settings."""
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
        settings = {
            name: value
            for name, value in context.params.items()
            if name not in COMMAND_ONLY and value not in (None, [], ())
        }
        if not context.params.get("list_methods"):
            assert readers[words[0]](settings), words


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_docstring_examples_are_correct(module: str) -> None:
    """Docstring examples print what they show."""
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize("page", PAGES)
def test_modules_and_targets_of_make_that_are_named_exist(page: str) -> None:
    """`python -m benchmarks.X` is a module, and `make X` is a target of the Makefile."""
    for module in set(re.findall(r"python -m (benchmarks(?:\.\w+)+)", PAGES[page])):
        assert find_spec(module), module
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = [block.text for block in blocks(page)] + re.findall(r"`(make [^`]+)`", PAGES[page])
    for text in code:
        for name in re.findall(r"^(?:.*&& )?make ([a-z][a-z-]*)", text, re.MULTILINE):
            assert name in known, f"make {name}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Files and headings that a page links to exist."""
    for path, anchor in links(page):
        assert (ROOT / path).exists(), f"{page}: {path}"
        if anchor:
            assert anchor in anchors(path), f"{page}: {path}#{anchor} of {sorted(anchors(path))}"
        if page.startswith("docs/"):
            assert path.startswith("docs/"), f"{page}: {path} is not a page of the site"


def _as_built(page: str) -> str:
    """Return the source of a page after the MkDocs hook."""
    script = runpy.run_path(str(ROOT / "scripts" / "command_reference.py"))
    return str(script["on_page_markdown"](PAGES[page]))


def test_the_reference_has_every_command_and_option() -> None:
    """The reference is generated from the commands; each command has an example."""
    page = _as_built("docs/reference/commands.md")
    assert "<!--" not in page
    for name, command in COMMANDS.commands.items():
        assert f"\n## gaprune {name}\n" in page
        assert "Example: gaprune" in command.help, name
        for option in command.params:
            assert option.param_type_name == "argument" or f"`{option.opts[0]}`" in page


def test_examples_in_the_help_are_understood() -> None:
    """The examples in the help of a command parse."""
    for name, command in COMMANDS.commands.items():
        for example in re.findall(r"Example: gaprune (.+)", command.help):
            assert example.split()[0] == name
            assert _parsed(example.split(), whole=True)


def test_the_rendered_diagram_has_the_labels_of_its_source() -> None:
    """The site shows docs/images/data-flow.svg instead of the Mermaid source."""
    source = next(block.text for block in blocks("CONTRIBUTING.md") if block.kind == "mermaid")
    labels = re.findall(r'"([^"]+)"|-- (\w+) -->', source)
    svg = (ROOT / "docs" / "images" / "data-flow.svg").read_text(encoding="utf-8")
    # Mermaid wraps labels: compare words in order, without tags and spaces.
    rendered = re.sub(r"<[^>]*>|\s+", "", html.unescape(svg))
    for label in ("".join(pair) for pair in labels):
        for line in label.split("<br/>"):
            assert re.sub(r"\s+", "", line) in rendered, line


@pytest.mark.parametrize("page", [p for p in PAGES if p != "CHANGELOG.md"])
def test_every_option_that_is_named_exists(page: str) -> None:
    """`--option` in a page belongs to a command, a script of the repository or another tool."""
    unknown = _named_options(PAGES[page]) - OPTIONS - OTHER_TOOLS - SCRIPT_OPTIONS
    assert not unknown


def test_options_in_messages_and_docstrings_exist() -> None:
    """Every `--option` in the code of gaprune is one of its own, or of another tool."""
    for path in sorted((ROOT / "gaprune").rglob("*.py")):
        unknown = _named_options(path.read_text(encoding="utf-8")) - OPTIONS - OTHER_TOOLS
        assert not unknown, path


def _named_options(text: str) -> set[str]:
    return set(
        re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z](?![\w-])", re.sub(r"https?://\S+", "", text))
    )


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    """A kernel runs every cell; the notebook keeps as many outputs, and the site shows them."""
    path = ROOT / "docs" / "notebooks" / "quickstart.ipynb"
    stored, notebook = (nbformat.read(path, as_version=4) for _ in range(2))
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, resources=place).execute()
    outputs = [
        [len(cell.get("outputs", ())) for cell in cells] for cells in (stored.cells, notebook.cells)
    ]
    assert outputs[0] == outputs[1]
    assert "```text" in _as_built("docs/notebooks/quickstart.md")


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    """MkDocs reports no warning, and no page loads anything from another server."""
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
