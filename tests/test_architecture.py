"""Imports only go down, packages stay in their rooms, files stay readable and portable."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gaprune"
MAX_LINES = 350
MAX_AT_ROOT = 16

FLOORS = (
    # 0: plain data and errors that everything uses, no torch
    (
        "errors",
        "formats",
        "pattern_names",
        "words",
        "inputs",
        "config",
        "keys",
        "records",
        "userfile",
        "plugins",
        "observe",
        "spent",
    ),
    # 1: the network and its masks
    ("checkpoint", "files", "masks", "network", "patterns", "sources", "sparse", "zoo"),
    # 2: what is shown to it, and how weights and outputs are judged
    ("calibration", "criterion", "objectives"),
    # 3: what a worker holds
    ("baselines", "memory", "plots", "repair", "trial"),
    # 4: the search
    ("evolution", "workers"),
    # 5: one run from start to end, and the public names (the package's own __init__)
    (
        "planning",
        "outcome",
        "keeping",
        "report",
        "exports",
        "measures",
        "running",
        "comparison",
        "__init__",
    ),
    # 6: people
    ("screen", "checkup", "cli", "__main__"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

HOMES = {  # package → the only files (or folders) of gaprune that import it
    "ray": ("workers/",),
    "deap": ("evolution/",),
    "matplotlib": ("plots/",),
    "sklearn": ("baselines/clustering.py",),
    "torch_pruning": ("baselines/channels.py",),
    "typer": ("cli/",),
    "rich": ("screen/console.py", "screen/live.py", "cli/"),
    "jinja2": ("report/",),
    "markupsafe": ("report/",),
}


def module_name(path: Path) -> str:
    """Return `gaprune.io.lock` for its file, `gaprune.io` for its `__init__.py`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def room_of(module: str) -> str:
    """Return the second part of a dotted name; the package itself is its `__init__`."""
    return module.split(".")[1] if "." in module else "__init__"


def imports_of(tree: ast.Module) -> Iterator[str]:
    """Yield every imported dotted name, also those inside functions or for types only.

    Of `from a import b`, `a.b` where that is a module of gaprune, else `a`.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def own_imports(module: str) -> set[str]:
    """Return the modules of gaprune that a module imports."""
    return {name for name in imports_of(TREES[module]) if name.split(".")[0] == "gaprune"}


def test_the_package_is_found() -> None:
    """The other tests look at real files with real imports."""
    assert "gaprune.masks.supermask" in own_imports("gaprune.masks.budget")
    assert "gaprune.models.zoo.mnist" in own_imports("gaprune.calibration.files")
    assert "torch" in imports_of(TREES["gaprune.masks.supermask"])


@pytest.mark.parametrize("module", MODULES)
def test_every_file_has_a_floor(module: str) -> None:
    """A new room is put on a floor by whoever builds it."""
    room = room_of(module)
    assert room in FLOOR_OF, f"{MODULES[module].relative_to(ROOT)}: put {room!r} on a floor"


def test_the_root_holds_only_what_everything_uses() -> None:
    """A newcomer reads a few files and the names of rooms; the rest lies in the rooms."""
    assert len([path for path in MODULES.values() if path.parent == PACKAGE]) <= MAX_AT_ROOT


def test_every_room_that_has_a_floor_is_there() -> None:
    """Who deletes or renames a room takes its name off the floor."""
    assert set(FLOOR_OF) == {room_of(module) for module in MODULES}


@pytest.mark.parametrize("module", [one for one in MODULES if FLOOR_OF.get(room_of(one)) == 0])
def test_the_lowest_floor_needs_no_torch(module: str) -> None:
    """Plain data is read by programs that have no network in their hands."""
    assert not {name.split(".")[0] for name in imports_of(TREES[module])} & {"numpy", "torch"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    """A file imports from its own floor or from below, never from above."""
    floor = FLOOR_OF.get(room_of(module), -1)
    above = {name for name in own_imports(module) if FLOOR_OF.get(room_of(name), -1) > floor}
    assert not above, f"{module} (floor {floor}) imports from above: {sorted(above)}"


def test_no_module_imports_itself_in_a_circle() -> None:
    """The graph of modules has a topological order (CycleError names the circle)."""
    graph = {module: own_imports(module) - {module} for module in MODULES}
    assert set(TopologicalSorter(graph).static_order()) >= set(MODULES)


def test_no_room_depends_on_a_room_that_depends_on_it() -> None:
    """The graph of rooms has a topological order, so the rooms of a floor can be read in one."""
    graph: dict[str, set[str]] = {room_of(module): set() for module in MODULES}
    for module in MODULES:
        graph[room_of(module)] |= {room_of(name) for name in own_imports(module)}
    for room, below in graph.items():
        below.discard(room)
    assert set(TopologicalSorter(graph).static_order()) >= set(graph)


@pytest.mark.parametrize(("package", "homes"), HOMES.items(), ids=HOMES)
def test_a_package_is_imported_in_its_home_only(package: str, homes: tuple[str, ...]) -> None:
    """Whoever wants to replace Ray, DEAP or the console reads one place."""
    users = {
        MODULES[module].relative_to(PACKAGE).as_posix()
        for module, tree in TREES.items()
        if any(name.split(".")[0] == package for name in imports_of(tree))
    }
    assert not {user for user in users if not user.startswith(homes)}


@pytest.mark.parametrize("module", MODULES)
def test_files_are_readable_in_one_sitting(module: str) -> None:
    """A longer file holds two rooms."""
    assert len(MODULES[module].read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("module", MODULES)
def test_public_names_have_docstrings(module: str) -> None:
    """Every module, and every public class, function and method in it, says what it is."""
    assert not list(undocumented(TREES[module], module))


def undocumented(node: ast.Module | ast.ClassDef, name: str) -> Iterator[str]:
    """Yield the public names in a module or class that have no docstring; magic methods may."""
    if ast.get_docstring(node) is None:
        yield name
    for child in node.body:
        if not isinstance(child, ast.ClassDef | ast.FunctionDef) or child.name.startswith("_"):
            continue
        if isinstance(child, ast.ClassDef):
            yield from undocumented(child, f"{name}.{child.name}")
        elif ast.get_docstring(child) is None:
            yield f"{name}.{child.name}"


def committed_files() -> list[Path]:
    """Return the files of the project: what git tracks, or all of them outside a checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"],  # noqa: S607 - whichever git the user has
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0 and listed.stdout:
        return [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    folders = (".ci", ".github", "benchmarks", "docs", "gaprune", "scripts", "tests")
    places = ["*", *(f"{folder}/**/*" for folder in folders)]
    found = (path for place in places for path in ROOT.glob(place))
    return [path for path in found if path.is_file() and path.suffix != ".pyc"]


def test_no_committed_text_names_a_place_on_somebodys_machine() -> None:
    """What is committed works on every machine: no absolute home or workplace paths."""
    # in pieces, so that this file doesn't hold what it looks for
    needles = re.compile("|".join(("/wo" + "rk/", "/ro" + "ot/", r"(?<!\w)sha" + "red/")))
    texts = 0
    for path in committed_files():
        try:
            text = path.read_text()
        except (UnicodeDecodeError, FileNotFoundError):  # weights and images; deleted, uncommitted
            continue
        texts += 1
        assert not needles.findall(text), f"{path.relative_to(ROOT)} names a place"
    assert texts > 40  # the project, not an empty folder
