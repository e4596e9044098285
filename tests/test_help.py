"""What the command line says about itself: at once, in full, and to shells."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from command_line import Run

import gaprune
from gaprune.cli import COMMANDS, load_command
from gaprune.config import Settings
from gaprune.criteria import CRITERIA
from gaprune.exports import EXPORTERS
from gaprune.models.zoo import ZOO


def _python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )


def test_help_does_not_import_torch() -> None:
    """Help, version and a mistyped command answer at once; a command imports what it needs."""
    code = (
        "import sys\nfrom gaprune.cli import main\n"
        "for words in (['--help'], ['--version'], ['pruen'], []): main(words)\n"
        "print('torch' in sys.modules)\nmain(['prune', '--help'])\nprint('torch' in sys.modules)"
    )
    lines = _python(code).stdout.splitlines()
    assert [line for line in lines if line in ("True", "False")] == ["False", "True"]
    code = "import sys\nfrom gaprune.cli import main\nmain([])\nprint('torch' in sys.modules)"
    asked = {"COMP_WORDS": "gaprune p", "COMP_CWORD": "1", "_GAPRUNE_COMPLETE": "complete_bash"}
    assert _python(code, **asked).stdout.split() == ["prune", "False"]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary_of_a_command_is_the_first_line_of_its_docstring(name: str) -> None:
    """`gaprune --help` does not import the command, so both are written down."""
    function = getattr(import_module(f"gaprune.cli.{name}_command"), f"{name}_command")
    assert COMMANDS[name] == (inspect.getdoc(function) or "").splitlines()[0]


@pytest.mark.parametrize("columns", ["80", "110"])
@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_is_complete(
    name: str, columns: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No word is cut or taken for markup, no line is too wide, every option has a help text."""
    monkeypatch.setenv("COLUMNS", columns)
    shown = run(name, "--help").out
    assert max(map(len, shown.splitlines())) <= int(columns)
    words = set(re.sub(r"[│\s]+", " ", shown).split())
    command: Any = load_command(name)
    if name == "prune":
        assert set(Settings.model_fields) <= {parameter.name for parameter in command.params}
    assert set(command.help.split()) <= words
    for parameter in command.params:
        assert parameter.help
        assert set(parameter.help.split()) <= words, parameter.name
        assert parameter.param_type_name == "argument" or set(parameter.opts) <= words
    assert "Example: gaprune" in command.help


def test_the_help_lists_exit_codes_and_variables(run: Run) -> None:
    """And an existing page of the documentation; the version is alone on stdout."""
    assert re.fullmatch(r"gaprune \d+\.\d+\.\d+\n", run("--version").out)
    shown = " ".join(run("--help").out.split())
    for words in ("0 done", "1 failed", "130", "143", "NO_COLOR", "GAPRUNE_DEBUG"):
        assert words in shown
    assert Path(__file__).parents[1].joinpath(*re.findall(r"docs/\w+\.md", shown)).is_file()


def _completed(line: str, shell: str = "bash") -> list[str]:
    """Return what the shell offers behind `line`, asked as its own script asks."""
    words = line.split(" ")
    asked = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    code = "from gaprune.cli import main; main([])"
    asked["_GAPRUNE_COMPLETE"] = f"complete_{shell}"
    return _python(code, **asked).stdout.strip().splitlines()


@pytest.mark.slow
def test_bash_completes_commands_options_and_values() -> None:
    """Names of closed lists, also the last of several in one word."""
    assert _completed("gaprune ") == list(COMMANDS)
    assert _completed("gaprune prune --spars") == ["--sparsity"]
    assert _completed("gaprune prune mnist") == [name for name in ZOO if name.startswith("mnist")]
    offered = _completed("gaprune prune --initial-criteria lamp,magni")
    assert offered == [f"lamp,{name}" for name in CRITERIA if name.startswith("magni")]
    assert _completed("gaprune export run --format s") == [
        name for name in EXPORTERS if name.startswith("s")
    ]
    assert _completed("gaprune prune none/of/the/zo") == []  # bash then offers files


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_show_what_a_command_does(shell: str) -> None:
    """With its summary."""
    (line,) = (line for line in _completed("gaprune d", shell) if "doctor" in line)
    assert COMMANDS["doctor"].split(maxsplit=1)[1] in line


@pytest.mark.parametrize("option", ["--probes", "--guard", "--rate=0.1"])
def test_a_renamed_option_is_refused_with_its_new_name(option: str, run: Run) -> None:
    """The exit code is that of wrong usage."""
    renamed = {"--probes": "--calibration", "--guard": "--validation", "--rate": "--learning-rate"}
    refused = run("prune", "mnist-mlp", option, "noise")
    assert refused.code == 2
    assert renamed[option.partition("=")[0]] in refused.err


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_script_for_bash_works_in_bash(tmp_path: Path) -> None:
    """What --show-completion prints, read by a real shell that then completes a word."""
    there = _python(
        "from gaprune.cli import main; main([])", _GAPRUNE_COMPLETE="source_bash"
    ).stdout
    tool = tmp_path / "gaprune"
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gaprune "$@"\n')
    tool.chmod(0o755)
    asking = (
        f'{there}\nCOMP_WORDS=(gaprune d) COMP_CWORD=1\n_gaprune_completion "{tool}"\n'
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    ran = subprocess.run(["bash", "-c", asking], capture_output=True, text=True, check=True)  # noqa: S607 - whichever bash the user has
    assert ran.stdout.split() == ["demo", "doctor"]


def test_the_package_is_imported_at_once_and_its_names_when_asked_for() -> None:
    """`import gaprune` loads no torch; `gaprune.prune` and `from gaprune import prune` do."""
    code = (
        "import sys, gaprune\n"
        "print('torch' in sys.modules, set(gaprune.__all__) <= set(dir(gaprune)))\n"
        "from gaprune import prune\nprint(gaprune.prune is prune, 'torch' in sys.modules)"
    )
    assert _python(code).stdout.split() == ["False", "True", "True", "True"]


def test_every_public_name_is_what_types_say() -> None:
    """The list, the places they are loaded from and the imports for type checkers agree."""
    source = inspect.getsource(gaprune)
    typed = source.partition("if TYPE_CHECKING:")[2].partition("__all__")[0]
    for line in re.findall(r"from (\S+) import (.+)", typed):
        for item in line[1].split(", "):
            name, _, alias = item.partition(" as ")
            public = getattr(gaprune, alias or name)
            public = getattr(public, "export", public)  # the package `export` can be called
            assert public is getattr(import_module(line[0]), name)
    named = re.findall(r"(?:import |, | as )(\w+)(?! as)\b", typed)
    assert set(gaprune.__all__) <= set(named)
    with pytest.raises(AttributeError, match="no attribute 'prnue'"):
        gaprune.prnue  # type: ignore[attr-defined] # noqa: B018 - it is looked up
