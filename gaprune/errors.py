"""Exceptions, warnings, and how their messages name options in Python and on a command line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

_MOST_NAMES = 5  # listed of a long list
_LONGEST = 80  # characters of a value in a message
_ARGUMENT = re.compile(r"^(?!labels)[a-z_ ]+: ")  # the first word of every message


class GapruneError(Exception):
    """A run failed, for a reason that the message explains (exit code 1)."""

    def __str__(self) -> str:
        return in_words_of_the_caller(super().__str__())


class InputError(GapruneError, ValueError):
    """An input is invalid; the message names rule, value and remedy (exit code 2)."""


class GapruneWarning(UserWarning):
    """A result may not be what it seems, for a reason that the message explains."""


# The command line sets it while it runs: messages name arguments as the caller writes them.
_command_line = False
_SWITCHES = (
    "compensate",
    "fold_parametrizations",
    "overwrite",
    "pareto",
    "repair",
    "repair_in_loop",
    "trust_code",
)
_OF_INPUTS = {"input_shape": "shape", "input_kind": "kind"} | {
    name: name for name in ("range", "mean", "std", "vocabulary")
}  # option → field of `InputOptions`
_OPTION = re.compile(r"(?<![\w-])--([a-z][a-z-]*)(?:=([^\s;)]*[^\s;).,:]))?")
_RESUME = re.compile(r"\bgaprune resume (?:'([^']*)'|(\S+?))(?=[;,]?\s|$)")


@contextmanager
def options_of_the_command_line() -> Iterator[None]:
    """Let messages name options as the command line does."""
    global _command_line  # noqa: PLW0603 # one interface serves the whole process
    _command_line, before = True, _command_line
    try:
        yield
    finally:
        _command_line = before


def in_words_of_the_caller(text: str) -> str:
    """Name the options in a message as the interface in use writes them.

    Messages are written with `--calibration=noise` or `--calibration`. The command line shows
    `--calibration noise`; Python shows `calibration='noise'` and `calibration=`, and
    `gaprune.resume('run')` for the command that resumes a run.
    """
    if _command_line:
        return _OPTION.sub(lambda option: option[0].replace("=", " ", 1), text)
    text = _RESUME.sub(lambda run: f"gaprune.resume({run[1] or run[2]!r})", text)
    return _OPTION.sub(_python_argument, text.replace("gaprune prune", "gaprune.prune"))


def _python_argument(option: re.Match[str]) -> str:
    name, value = option[1].replace("-", "_"), option[2]
    if value is None:
        value = "True" if name in _SWITCHES else ""
    else:
        value = _python_value(value)
        if name in ("input_shape", "mean", "std") and not value.startswith("("):
            value = f"({value},)"
    name = "example_inputs" if name == "inputs" else name  # Python's `inputs` are `InputOptions`
    if name in _OF_INPUTS:
        argument = f"InputOptions({_OF_INPUTS[name]}={value or '…'})"
        return f"inputs={argument}" if value else argument
    return f"{name}={value}"


def _python_value(value: str) -> str:
    if value in ("yes", "no"):
        return str(value == "yes")
    if "," in value:
        return f"({', '.join(map(_python_value, value.split(',')))})"
    # numbers, and words in capitals, which stand for a value
    plain = value.isupper() or value.replace(".", "", 1).isdecimal()
    return value if plain else repr(value)


def describe(value: object) -> str:
    """Return a value in few words for a message of one line: an array by its shape."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} {list(value.shape)} of {value.dtype}"
    if isinstance(value, (list, tuple)) and any(hasattr(item, "shape") for item in value):
        more = ", …" if value[3:] else ""
        return f"{type(value).__name__} of {', '.join(map(describe, value[:3]))}{more}"
    text = repr(value)
    return text if len(text) <= _LONGEST and "\n" not in text else f"a {type(value).__name__}"


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def about(argument: str, error: Exception) -> InputError:
    """Return the error of another argument as one of `argument`; the message is not nested."""
    return InputError(f"{argument}: {_ARGUMENT.sub('', str(error))}")


def nearest(name: str, known: Sequence[str], of: str) -> str:
    """Return a text with the nearest names of a long list; `of` says which list it is."""
    if not known:
        return f"there are no names {of}"
    near = difflib.get_close_matches(name, known, n=_MOST_NAMES, cutoff=0.5)
    return f"nearest of the {len(known)} names {of}: {', '.join(near or known[:_MOST_NAMES])}"


def unknown_name(what: str, name: object, valid: Iterable[str]) -> InputError:
    """Return the error for a name outside a closed list: the nearest name, then all of them."""
    names = sorted(valid)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return InputError(f"{what}: unknown name {name!r}{hint}; valid names: {', '.join(names)}")
