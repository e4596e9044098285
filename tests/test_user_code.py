"""Functions of a user's project: in packages, beside scripts, below `src`, by file or module."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gaprune.errors import InputError
from gaprune.io.trusted_code import check_code, named_code
from gaprune.io.user_code import PREFIX, code_file, load_function, project_code

PROJECT = {
    "pyproject.toml": "",
    "zoological/__init__.py": "from .net import make as again\n",
    "zoological/layers.py": "SIZE = 3\n",
    "zoological/net.py": "from .layers import SIZE\ndef make():\n    return SIZE\n",
    "zoological/deep/__init__.py": "from ..net import make\n",
    "zoological/deep/net.py": "from ..layers import SIZE\ndef make():\n    return SIZE\n",
    "scripts/build.py": "from zoological import again\nfrom beside import SIZE\n"
    "def make():\n    return again() * SIZE // 3\n",
    "scripts/beside.py": "SIZE = 3\n",
    "src/botanical/__init__.py": "",
    "src/botanical/leaf.py": "SIZE = 3\ndef make():\n    return SIZE\n",
    "scripts/leaf.py": "from botanical.leaf import make\n",
    "json/__init__.py": "",
    "json/net.py": "def make():\n    return 3\n",
    "broken/__init__.py": "raise RuntimeError('imported')\n",
    "broken/net.py": "def make():\n    return 3\n",
    "scripts/lost.py": "import no_such_module_anywhere\n",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Write a project; what is imported from it is forgotten afterwards."""
    for name, text in PROJECT.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}
    yield tmp_path
    for name in {*sys.modules} - before:
        file = getattr(sys.modules[name], "__file__", None)
        if str(file).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize(
    "spec",
    [
        "zoological/net.py:make",
        "zoological/__init__.py:again",
        "zoological/deep/net.py:make",
        "zoological/deep/__init__.py:make",
        "scripts/build.py:make",
        "scripts/leaf.py:make",
        "src/botanical/leaf.py:make",
        "json/net.py:make",
        "zoological.net:make",
        "zoological.deep:make",
        "botanical.leaf:make",
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_functions_of_a_project(
    project: Path, spec: str, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Imports of a project work where the command is started in it; by file also elsewhere."""
    is_file = ".py:" in spec
    if inside or not is_file:
        monkeypatch.chdir(project)
    else:
        spec = f"{project}/{spec}"
    function = load_function(spec, "target")
    assert function() == 3
    assert load_function(spec, "target") is function
    is_alone = spec.endswith(("json/net.py:make", "scripts/build.py:make"))
    assert function.__module__.startswith(PREFIX) == is_alone
    assert sys.modules["json"].__file__ != f"{project}/json/__init__.py"


def test_a_missing_import_names_the_way_out(project: Path) -> None:
    """The message about a module that is not found says how to start gaprune."""
    with pytest.raises(InputError, match=r"no_such_module_anywhere.*PYTHONPATH"):
        load_function(f"{project}/scripts/lost.py:make", "target")


def test_names_of_modules_are_code(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration that names a module is not trusted, and checking it imports nothing."""
    monkeypatch.chdir(project)
    config = {"target": "broken.net:make", "objective": "no.where:grade", "methods": ["a.b:c"]}
    assert code_file("broken.net:make") == project / "broken/net.py"
    assert [code.identity for code in named_code(config)] == [
        f"{project}/broken/net.py:make",
        f"{project}/no/where.py:grade",
        f"{project}/a/b.py:c",
    ]
    assert "broken" not in sys.modules
    with pytest.raises(InputError, match="trust_code=True"):
        check_code(config, project / "config.toml", trust_code=False)
    for target in ("timm:resnet18.a1_in1k", "hf:a/b.c", "timm:resnet18"):
        assert code_file(target) is None


def test_a_project_can_travel(project: Path) -> None:
    """The packages and modules that were imported from a project are listed, and nothing else."""
    before = project_code()
    load_function(f"{project}/scripts/build.py:make", "target")
    assert {*project_code()} - {*before} == {
        f"{project}/zoological",
        f"{project}/scripts/beside.py",
    }
    assert not any("site-packages" in path for path in project_code())
