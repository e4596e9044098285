"""The layout of the package: imports, names and file sizes."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gaprune"
MAX_LINES = 500
MAX_AT_ROOT = 10
GENERIC_NAMES = {"one", "found", "own", "held", "shown", "kept", "place", "how"}

ORDER = (  # top to bottom: a package imports packages below it only; `root` are the loose modules
    "__main__",
    "__init__",
    "cli",
    "comparison",
    "exports",
    "runs",
    "report",
    "evolution",
    "workers",
    "evaluation",
    "repair",
    "criteria",
    "calibration",
    "models",
    "io",
    "masks",
    "root",
)

HOMES = {  # third-party package → the only files or folders of gaprune that import it
    "ray": ("workers/",),
    "deap": ("evolution/",),
    "matplotlib": ("comparison/plots/",),
    "sklearn": ("exports/clustering.py",),
    "typer": ("cli/",),
    "rich": ("cli/",),
    "tqdm": ("runs/python_display.py",),
    "jinja2": ("report/", "exports/"),
    "markupsafe": ("report/",),
}


def module_name(path: Path) -> str:
    """Return `gaprune.io.lock` for its file, `gaprune.io` for its `__init__.py`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def package_of(module: str) -> str:
    """Return the package of a module: its second part, or `root`."""
    parts = module.split(".")
    if len(parts) == 1:
        return "__init__"
    return parts[1] if parts[1] in ORDER else "root"


def imports_of(module: str) -> Iterator[str]:
    """Yield every imported name, also inside functions; modules of gaprune by their full name."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: relative import"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


IMPORTS = {module: set(imports_of(module)) for module in MODULES}


def test_the_package_is_scanned() -> None:
    """The other tests read real files with real imports."""
    assert "gaprune.masks.supermask" in IMPORTS["gaprune.masks.budget"]
    assert "torch" in IMPORTS["gaprune.masks.supermask"]
    assert {package_of(module) for module in MODULES} == set(ORDER)


def test_imports_go_down() -> None:
    """A module imports from its own package or from packages below it."""
    upward = [
        f"{module} imports {name}"
        for module in MODULES
        for name in IMPORTS[module]
        if name in MODULES and ORDER.index(package_of(name)) < ORDER.index(package_of(module))
    ]
    assert not upward


def test_no_module_imports_itself_through_others() -> None:
    """The graph of modules has a topological order; a CycleError names the cycle."""
    graph = {module: (IMPORTS[module] & set(MODULES)) - {module} for module in MODULES}
    assert set(TopologicalSorter(graph).static_order()) == set(MODULES)


def test_root_modules_need_no_torch() -> None:
    """Programs that only read settings or records start fast."""
    root = [module for module in MODULES if package_of(module) == "root"]
    heavy = [m for m in root if {name.split(".")[0] for name in IMPORTS[m]} & {"torch", "numpy"}]
    assert not heavy
    assert len(root) <= MAX_AT_ROOT


def test_a_third_party_package_has_one_home() -> None:
    """Whoever replaces Ray, DEAP or the console edits one package."""
    strays = [
        f"{path.relative_to(PACKAGE)} imports {package}"
        for package, homes in HOMES.items()
        for module, path in MODULES.items()
        if package in {name.split(".")[0] for name in IMPORTS[module]}
        and not path.relative_to(PACKAGE).as_posix().startswith(homes)
    ]
    assert not strays


def test_files_are_at_most_500_lines() -> None:
    """A longer file answers more than one question."""
    lengths = {m: len(path.read_text().splitlines()) for m, path in MODULES.items()}
    assert not {module: length for module, length in lengths.items() if length > MAX_LINES}


def test_names_are_unique() -> None:
    """No two modules share a file name; no two classes or public functions share a name."""
    homes = defaultdict(list)
    for module, path in MODULES.items():
        if path.name not in {"__init__.py", "__main__.py"}:
            homes[path.name].append(module)
        for node in TREES[module].body:
            if isinstance(node, ast.ClassDef) or (
                isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
            ):
                homes[node.name].append(module)
    assert not {name: modules for name, modules in homes.items() if len(set(modules)) > 1}


def test_names_say_what_they_hold() -> None:
    """Fewer than one generic name, such as `found`, per 1,000 lines."""
    uses: dict[str, list[str]] = defaultdict(list)
    lines = 0
    for module, path in MODULES.items():
        text = path.read_text()
        lines += len(text.splitlines())
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME and token.string in GENERIC_NAMES:
                uses[module].append(f"{token.string} in line {token.start[0]}")
    assert sum(map(len, uses.values())) < lines / 1000, dict(uses)


def test_public_names_have_docstrings() -> None:
    """Every module and every public class, function and method has a docstring."""
    assert not [name for module, tree in TREES.items() for name in undocumented(tree, module)]


def undocumented(node: ast.Module | ast.ClassDef, name: str) -> Iterator[str]:
    """Yield the public names without a docstring in a module or class, except magic methods."""
    if ast.get_docstring(node) is None:
        yield name
    for child in node.body:
        if not isinstance(child, ast.ClassDef | ast.FunctionDef) or child.name.startswith("_"):
            continue
        if isinstance(child, ast.ClassDef):
            yield from undocumented(child, f"{name}.{child.name}")
        elif ast.get_docstring(child) is None:
            yield f"{name}.{child.name}"


def test_no_committed_text_names_a_path_of_one_machine() -> None:
    """No home folders or workplace paths in any committed file."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"],  # noqa: S607 - whichever git is installed
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    names = listed.stdout.decode().split("\0")[:-1]
    folders = (".ci", ".github", "benchmarks", "docs", "gaprune", "scripts", "tests")
    paths = [ROOT / name for name in names] or [  # outside a checkout: all files
        path for pattern in ("*", *(f"{f}/**/*" for f in folders)) for path in ROOT.glob(pattern)
    ]
    # in pieces, so that this file does not contain what it searches for
    pattern = re.compile("|".join(("/wo" + "rk/", "/ro" + "ot/", r"(?<!\w)sha" + "red/")))
    texts, offenders = 0, []
    for path in paths:
        try:
            text = path.read_text()
        except (UnicodeDecodeError, OSError):  # images and weights; folders; deleted files
            continue
        texts += 1
        offenders += [str(path.relative_to(ROOT))] if pattern.search(text) else []
    assert texts > 40
    assert not offenders
