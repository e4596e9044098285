"""Decide whether code that a file names, or holds, may run.

A configuration can name functions (`path/to/file.py:function` or `package.module:function`), and a
`.pt2` file is a program. They run only if the user names them in this call, confirms them
(`--trust-code`), or if this user's gaprune wrote the folder on this machine and neither the names
nor the code have changed since. For that, gaprune remembers every folder whose configuration names
code, in one file per folder below `$XDG_STATE_HOME/gaprune`, else `~/.local/state/gaprune`. A
folder that was moved is not known.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gaprune.errors import InputError
from gaprune.io.atomic import write_file
from gaprune.io.bounded_reading import read_object
from gaprune.io.file_hash import sha256_of_file
from gaprune.io.serialization import to_json
from gaprune.io.user_code import code_file

CODE_KEYS = ("target", "objective", "methods")
"""Keys of a configuration that may name a function of the user's."""
REMEDY = "--trust-code"


class NamedCode(NamedTuple):
    """A function that a configuration names."""

    key: str  # one of `CODE_KEYS`
    spec: str  # as it is written there
    identity: str  # the absolute path of its file, and its name
    sha256: str  # of the file, "" if it cannot be read


def check_code(
    config: Mapping[str, Any], source: Path, *, trust_code: bool, remedy: str = ""
) -> None:
    """Raise unless all code that a configuration names may run.

    Args:
        config: the part of it that the caller uses, without what the user has stated otherwise.
        source: the file that it was read from.
        trust_code: whether the user has confirmed in this call that it may run.
        remedy: what the user may do instead of confirming it, for the message.

    Raises:
        InputError: it may not; the message lists the code.
    """
    if trust_code:
        return
    known = _remembered(source.resolve().parent)
    refused = [code for code in named_code(config) if known.get(code.identity) != code.sha256]
    if not refused:
        return
    reason = "gaprune did not write that folder here for you"
    if any(code.identity in known for code in refused):
        reason = "it has changed since gaprune wrote that folder"
    listed = ", ".join(f"{code.key} {code.spec}" for code in refused)
    raise InputError(
        f"{refused[0].key}: {source} names code that would run ({listed}), and {reason}; read the "
        f"code, then add {REMEDY}{remedy}"
    )


def may_run(config: Mapping[str, Any], source: Path) -> bool:
    """Tell whether the code that a configuration names runs without confirmation."""
    try:
        check_code(config, source, trust_code=False)
    except InputError:
        return False
    return True


def remember_code(folder: Path, config: Mapping[str, Any]) -> None:
    """Record that gaprune wrote a configuration into a folder, and which code it names.

    Only for code that was allowed to run. A home directory that cannot be written is no error.
    """
    code = {named.identity: named.sha256 for named in named_code(config)}
    file = _memory(folder.resolve())
    if file is None or not (code or file.exists()):
        return  # most runs name no code, and leave nothing in the home directory
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_file(file, to_json({"folder": str(folder.resolve()), "code": code}, indent=2) + "\n")


def check_program(path: Path, *, trust_code: bool) -> None:
    """Raise unless a program of `torch.export` may be loaded, which can run any code in it.

    Raises:
        InputError: it may not.
    """
    if not trust_code:
        raise InputError(
            f"file: {path} is a program, which can run any code when it is loaded; measure it in "
            "the folder of its compact export, where it need not be loaded, "
            f"or add {REMEDY} if you trust its author"
        )


def named_code(config: Mapping[str, Any]) -> Iterator[NamedCode]:
    """Yield every function that a configuration names."""
    for key in CODE_KEYS:
        values = config.get(key)
        for value in values if isinstance(values, list | tuple) else [values]:
            if not isinstance(value, str):
                continue
            # Names may be joined by commas, and a comma may be part of a path.
            for spec in {value: None, **dict.fromkeys(map(str.strip, value.split(",")))}:
                if (file := code_file(spec)) is not None:
                    identity = f"{file}:{spec.rpartition(':')[2]}"
                    yield NamedCode(key, spec, identity, _sha256(file))


def _sha256(file: Path) -> str:
    try:
        return sha256_of_file(file)
    except OSError:
        return ""


def _remembered(folder: Path) -> Mapping[str, Any]:
    file = _memory(folder)
    record: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):  # what cannot be read is not known
        record = {} if file is None else read_object(file)
    code = record.get("code")
    return code if record.get("folder") == str(folder) and isinstance(code, dict) else {}


def _memory(folder: Path) -> Path | None:
    """Return the file about a folder; None without a home directory."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():  # such a value has no meaning (XDG Base Directory Specification)
        try:
            state = Path.home() / ".local" / "state"
        except RuntimeError:
            return None
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()
    return state / "gaprune" / f"{name}.json"
