"""Functions that the user names as `path/to/file.py:function` or `package.module:function`.

The file is code and is run. One inside a package is imported as a part of it. Its imports are also
looked for in its project: see `_project_folders`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import re
import sys
import sysconfig
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from gaprune.errors import InputError

PREFIX = "_gaprune_user_"  # of the names of user files in `sys.modules`
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")  # with a dot: `timm:NAME` is none
_PROJECT_FILES = ("pyproject.toml", "setup.py", "setup.cfg", ".git")  # at the top of a project
_INSTALLED = {"site-packages", "dist-packages", Path(sysconfig.get_path("stdlib")).name}


def load_function(spec: str, argument: str) -> Callable[..., Any]:
    """Return the function (or class) that `path/to/file.py:name` names; importing runs the file.

    `argument` is the caller's name of this input; error messages begin with it.

    Raises:
        InputError: not of this form, no such file or function, or the file raises.
    """
    source, _, name = spec.rpartition(":")
    if not source or not name.isidentifier():
        raise InputError(
            f"{argument}: must be path/to/file.py:function or package.module:function, got {spec!r}"
        )
    module = import_code(source, argument)
    function = getattr(module, name, None)
    if not callable(function):
        # names that the file imports do not help
        defined = [
            key
            for key, value in vars(module).items()
            if callable(value) and value.__module__ == module.__name__ and key[0] != "_"
        ]
        raise InputError(
            f"{argument}: {source} has no function {name!r}; it has {', '.join(defined) or 'none'}"
        )
    return function  # type: ignore[no-any-return]


def code_file(spec: str) -> Path | None:
    """Return the absolute path of the file that a function's name names; nothing is imported.

    The file may be missing. None if it cannot be imported: no colon, neither a `.py` file (after
    links) nor a module, or no valid path.
    """
    source, colon, _ = spec.rpartition(":")
    if not colon:
        return None
    return _module_file(source) if _is_module(source) else _python_file(source)


def import_code(source: str, argument: str) -> ModuleType:
    """Import a Python file, or a module by its name, once per process.

    A file outside packages gets a name that depends only on its full path: another process that has
    imported the same file can unpickle its classes. The folders of the project are appended to
    `sys.path` (last, so that they shadow nothing). What it prints goes to stderr.

    Raises:
        InputError: the file is missing, is not a `.py` file, or raises.
    """
    file = code_file(f"{source}:")
    if file is None:
        raise InputError(f"{argument}: must name a .py file, got {source!r}")
    if not file.is_file():
        raise InputError(f"{argument}: no file {source!r} (looked at {file})")
    sys.path.extend(folder for folder in _project_folders(file) if folder not in sys.path)
    name = source if _is_module(source) else _name_in_package(file)
    try:
        in_package = _is_module(source) or (file.parent / "__init__.py").is_file()
        if in_package and _finds(name, file):
            module: ModuleType = call_user(
                importlib.import_module, name, where=f"{argument}: importing {source}"
            )
        else:
            module = _import_alone(file, f"{argument}: importing {source}")
    except InputError as error:
        if not isinstance(error.__cause__, ImportError):
            raise
        raise InputError(
            f"{error}; start gaprune in the folder of the project, or set PYTHONPATH to it"
        ) from error
    return module


def call_user(function: Callable[..., Any], *arguments: Any, where: str) -> Any:  # noqa: ANN401
    """Call the user's code. What it prints goes to stderr, what it raises becomes an `InputError`.

    `where` is the beginning of its message.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            return function(*arguments)
    except (Exception, SystemExit) as error:
        raise InputError(f"{where} raised {type(error).__name__}: {error}") from error


def project_code() -> list[str]:
    """Return the folders of packages, and the files of other modules, of the user's project.

    They are those that this process has imported, without what is installed.
    """
    folders = [Path(folder).resolve() for folder in (*sys.path, ".")]
    tops = {name.partition(".")[0] for name in list(sys.modules)}
    tops -= {"gaprune", "__main__", "__mp_main__"}
    code = []
    for module in (sys.modules[name] for name in sorted(tops) if name in sys.modules):
        locations = [*getattr(module, "__path__", ()), getattr(module, "__file__", None)]
        if not isinstance(locations[0], str) or module.__name__.startswith(PREFIX):
            continue
        path = Path(locations[0]).resolve()
        is_code = path.is_dir() or path.suffix == ".py"
        if is_code and path.parent in folders and not _INSTALLED & {*path.parts}:
            code.append(str(path))
    return code


def _python_file(path: str) -> Path | None:
    try:
        resolved = Path(path).expanduser().resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, no such user, a null character
        return None
    return resolved if resolved.suffix == ".py" else None


def _is_module(name: str) -> bool:
    return bool(_MODULE.fullmatch(name)) and _python_file(name) is None


def _module_file(name: str) -> Path:
    """Return the file of a module; one that is found nowhere would be below this folder."""
    spec, parts = None, name.split(".")
    for number in range(len(parts)):
        spec = _find(".".join(parts[: number + 1]), spec)
        if spec is None:
            return Path(*parts).with_suffix(".py").resolve()
    if spec is None or spec.origin is None:
        return Path(*parts).with_suffix(".py").resolve()
    return Path(spec.origin).resolve()


def _find(name: str, parent: ModuleSpec | None) -> ModuleSpec | None:
    """Find a module without importing the packages that it is in."""
    folders: Any = [*sys.path, *_working_folders()]
    if parent is not None:
        folders = parent.submodule_search_locations or []
    for finder in sys.meta_path if parent is None else ():
        find = getattr(finder, "find_spec", None)
        if finder is not PathFinder and find:
            spec: ModuleSpec | None = find(name, None)
            if spec is not None:  # that of a package in development, for instance
                return spec
    return PathFinder.find_spec(name, folders)


def _working_folders() -> list[str]:
    return [str(folder) for folder in (Path.cwd(), Path.cwd() / "src") if folder.is_dir()]


def _project_folders(file: Path) -> list[str]:
    """Return where the imports of a file are looked for.

    Its own folder, that of the outermost package which it is in, the top of its project and `src`
    there, and the same two where the command was started.
    """
    package = next(f for f in file.parents if not (f / "__init__.py").is_file())
    folders = [file.parent, package]
    for folder in file.parents:
        if any((folder / name).exists() for name in _PROJECT_FILES):
            folders += [f for f in (folder, folder / "src") if f.is_dir()]
            break
    return list(dict.fromkeys([*map(str, folders), *_working_folders()]))


def _name_in_package(file: Path) -> str:
    """Return the name of a file as a module of the outermost package that it is in."""
    package = next(f for f in file.parents if not (f / "__init__.py").is_file())
    parts = file.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _finds(name: str, file: Path) -> bool:
    """Tell whether importing a name gives this file, and not one that is installed."""
    top = sys.modules.get(name.partition(".")[0])
    folders = [Path(folder).resolve() for folder in getattr(top, "__path__", ())]
    depth = name.count(".") - (file.name != "__init__.py")
    if top is not None and file.parents[depth] not in folders:
        return False
    return _module_file(name) == file


def _import_alone(file: Path, where: str) -> ModuleType:
    name = f"{PREFIX}{hashlib.sha256(str(file).encode()).hexdigest()[:16]}"
    if name in sys.modules:  # a second import would make a second class of each name
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None  # always so for a .py file
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look up their module
    try:
        call_user(spec.loader.exec_module, module, where=where)
    except BaseException:  # Ctrl-C too: half a module must not be found next time
        del sys.modules[name]
        raise
    return module
