"""What a reader of a run's page does next, as code to copy: load, export, repeat.

All paths hold in the directory where the run was started, because those in `config.toml` do.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaprune.config import Settings
from gaprune.io.bounded_reading import parse_toml
from gaprune.io.run_files import CONFIG, PRUNED
from gaprune.pattern_names import EXPERT
from gaprune.report.headline import corrected_networks
from gaprune.report.reading import RunFiles

_INPUTS = {  # key of `config.toml` → field of `InputOptions`
    "input_shape": "shape",
    "input_kind": "kind",
    **{name: name for name in ("range", "mean", "std", "vocabulary")},
}
_LOADING = ("weights", "weights_key", "output", "allow_download")  # arguments of `load_target`
_WIDTH = 72  # characters of a line of arguments


@dataclass(frozen=True)
class NextStep:
    """Code to copy."""

    title: str  # what it does
    code: str  # shell or Python, complete
    short: bool = False  # whether the page shows it beside its title


def next_steps(run: RunFiles, folder: Path) -> list[NextStep]:
    """Return the steps after a run whose directory is `folder`, an absolute path.

    A network in memory has no name: its steps are Python, and `model` stands for it.
    """
    directory = Path(run.report_data.get("directory") or Path.cwd())
    path = relative_path(folder, directory)
    last = [f"{name}.safetensors" for name in corrected_networks(run.record)]
    weights = f"{path}/{[PRUNED, *last][-1]}"
    config = parse_toml(run.config)
    target = config.get("target")
    model = f"...  # {run.record['target']}, as it was before"
    if target is not None:
        model = f"gaprune.load_target({_arguments(_loading(config))}).model"
    load = f"model = {model}\nmodel.load_state_dict(load_file({_literal(weights)}))"
    imports = "from safetensors.torch import load_file\n\n"
    if target is None:
        again = _arguments({"": _Code("model"), **_settings(config), "out": f"{path}-again"})
        exported = _arguments(
            {"": path, "format": "onnx", "out": f"{path}-onnx", "model": _Code("model")}
        )
        steps = [
            NextStep("Load in Python", imports + load),
            NextStep("Export to ONNX", f"import gaprune\n\ngaprune.export({exported})"),
            NextStep("Repeat", f"import gaprune\n\ngaprune.prune({again})"),
        ]
        return steps if run.config else steps[:2]
    # only transformers' own format can do without experts
    title, name = ("transformers", "hf") if config.get("pattern") == EXPERT else ("ONNX", "onnx")
    return [
        enter(directory),
        NextStep("Load in Python", f"import gaprune\n{imports}{load}"),
        NextStep(f"Export to {title}", shlex.join(["gaprune", "export", path, "--format", name])),
        repeat("prune", path),
    ]


def relative_path(folder: Path, directory: Path) -> str:
    """Return a folder as a command in `directory` names it; both paths are absolute."""
    return str(folder.relative_to(directory) if folder.is_relative_to(directory) else folder)


def enter(directory: Path) -> NextStep:
    """Return the step into the directory in which the other commands work."""
    return NextStep("Next, in this folder:", f"cd {_from_home(directory)}", short=True)


def repeat(command: str, path: str) -> NextStep:
    """Return the step that repeats `gaprune prune` or `gaprune compare` from its directory."""
    words = ["gaprune", command, "--config", f"{path}/{CONFIG}", "--out", f"{path}-again"]
    return NextStep("Repeat", shlex.join(words))


class _Code(str):
    """An expression, which is not quoted."""

    __slots__ = ()


def _literal(value: object) -> str:
    if isinstance(value, _Code):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        items = ", ".join(map(_literal, value))
        return f"({items},)" if len(value) == 1 else f"({items})"
    return repr(value)


def _loading(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "", config["target"]
    for name in _LOADING:
        if name in config:
            yield name, config[name]
    yield from _inputs(config)


def _inputs(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    stated = {field: config[key] for key, field in _INPUTS.items() if key in config}
    if stated:
        yield "inputs", _Code(f"gaprune.InputOptions({_arguments(stated)})")


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `gaprune.prune` that a configuration states, without defaults."""
    stated = {name: config[name] for name in ("prune_also", "ignore", "output") if name in config}
    for name, known in Settings.model_fields.items():
        if name in config and _plain(config[name]) != known.default:
            in_memory = f"given as {name}=" in str(config[name])
            stated[name] = _Code("...") if in_memory else config[name]
    return {**stated, **dict(_inputs(config))}


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _arguments(values: Mapping[str, Any] | Iterator[tuple[str, Any]]) -> str:
    """Return arguments of a call; those with an empty name are positional."""
    texts = [
        f"{name}={_literal(value)}" if name else _literal(value)
        for name, value in dict(values).items()
    ]
    line = ", ".join(texts)
    return line if len(line) <= _WIDTH else "\n    " + ",\n    ".join(texts) + ",\n"


def _from_home(directory: Path) -> str:
    """Return a directory as a word of the shell, short where it is below the home directory."""
    home = Path("~").expanduser() if "HOME" in os.environ else directory
    if directory == home or not directory.is_relative_to(home):
        return shlex.quote(str(directory))
    return f"~/{shlex.quote(str(directory.relative_to(home)))}"
