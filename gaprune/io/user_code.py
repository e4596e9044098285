"""Functions that the user names as `path/to/file.py:function`. The file is code and is run."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from gaprune.errors import InputError

PREFIX = "_gaprune_user_"  # of the names of user files in `sys.modules`


def load_function(spec: str, argument: str) -> Callable[..., Any]:
    """Return the function (or class) that `path/to/file.py:name` names; importing runs the file.

    `argument` is the caller's name of this input; error messages begin with it.

    Raises:
        InputError: not of this form, no such file or function, or the file raises.
    """
    file, _, name = spec.rpartition(":")
    if not file or not name.isidentifier():
        raise InputError(f"{argument}: must be path/to/file.py:function, got {spec!r}")
    module = import_file(Path(file), argument)
    function = getattr(module, name, None)
    if not callable(function):
        # names that the file imports do not help
        defined = [
            key
            for key, value in vars(module).items()
            if callable(value) and value.__module__ == module.__name__ and key[0] != "_"
        ]
        raise InputError(
            f"{argument}: {file} has no function {name!r}; it has {', '.join(defined) or 'none'}"
        )
    return function  # type: ignore[no-any-return]


def code_file(spec: str) -> Path | None:
    """Return the absolute path of the file in `path/to/file.py:function`, which may be missing.

    None if it cannot be imported: no colon, no `.py` file (after links), or no valid path.
    """
    path, colon, _ = spec.rpartition(":")
    try:
        resolved = Path(path).expanduser().resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, no such user, a null character
        return None
    return resolved if colon and resolved.suffix == ".py" else None


def import_file(path: Path, argument: str) -> ModuleType:
    """Import a Python file once per process, under a name that depends only on its full path.

    The stable name lets another process that has imported the same file unpickle its classes. The
    file's folder is appended to `sys.path` (last, so that it shadows nothing) for its own imports.
    What it prints goes to stderr.

    Raises:
        InputError: the file is missing, is not a `.py` file, or raises.
    """
    resolved = code_file(f"{path}:")
    if resolved is None:
        raise InputError(f"{argument}: must name a .py file, got {str(path)!r}")
    if not resolved.is_file():
        raise InputError(f"{argument}: no file {str(path)!r} (looked at {resolved})")
    name = f"{PREFIX}{hashlib.sha256(str(resolved).encode()).hexdigest()[:16]}"
    if name in sys.modules:  # a second import would make a second class of each name
        return sys.modules[name]
    if str(resolved.parent) not in sys.path:
        sys.path.append(str(resolved.parent))
    spec = importlib.util.spec_from_file_location(name, resolved)
    assert spec is not None
    assert spec.loader is not None  # always so for a .py file
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look up their module
    try:
        call_user(spec.loader.exec_module, module, where=f"{argument}: importing {path}")
    except BaseException:  # Ctrl-C too: half a module must not be found next time
        del sys.modules[name]
        raise
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
