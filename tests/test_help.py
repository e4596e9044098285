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
from gaprune import choices
from gaprune.calibration.files import ALIASES
from gaprune.calibration.generators.procedural import GENERATORS
from gaprune.calibration.parse import AUTO, FROM_NETWORK, NOISY, PROCEDURAL
from gaprune.cli import COMMANDS, load_command
from gaprune.cli.command_help import ESSENTIAL
from gaprune.comparison.methods.iterative import SCHEDULES
from gaprune.comparison.methods.method_registry import known_methods
from gaprune.comparison.methods.training import DECAYS, OPTIMISERS
from gaprune.comparison.sweeps import SWEEPS
from gaprune.config import Settings
from gaprune.criteria import CRITERIA, UNIT_CRITERIA
from gaprune.evaluation.batch_pool import BATCHES
from gaprune.evaluation.objectives import OBJECTIVES
from gaprune.evaluation.precision import PRECISIONS
from gaprune.exports import EXPORTERS
from gaprune.exports.measure import RUNTIMES
from gaprune.models.zoo import ZOO
from gaprune.runs.setup import STATISTICS_LOSS, WARMUP


def _python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )


def test_help_does_not_import_torch() -> None:
    """Help, version, wrong usage and completion answer at once; a command imports what it needs."""
    code = (
        "import sys\nfrom gaprune.cli import COMMANDS, main\n"
        "for words in (['--help'], ['--version'], ['pruen'], [], ['prune', '--sparsty', '0.5'],\n"
        "    *([name, '--help'] for name in COMMANDS), ['prune', '--help-all']): main(words)\n"
        "print('loaded:', {'torch', 'numpy', 'rich'} & set(sys.modules))"
    )
    assert _python(code).stdout.splitlines()[-1] == "loaded: set()"
    code = (
        "import sys\nfrom gaprune.cli import main\nmain([])\n"
        "print('torch' in sys.modules, 'rich' in sys.modules)"
    )
    for line, word in {
        "gaprune p": "prune",
        "gaprune prune --method wanda-r": "wanda-rows",
    }.items():
        count = str(len(line.split()) - 1)
        asked = {"COMP_WORDS": line, "COMP_CWORD": count, "_GAPRUNE_COMPLETE": "complete_bash"}
        assert _python(code, **asked).stdout.split() == [word, "False", "False"]


@pytest.mark.parametrize("columns", ["80", "100", "120"])
@pytest.mark.parametrize("name", ESSENTIAL)
def test_the_short_help_fits_on_a_screen(
    name: str, columns: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 22 options in 60 lines, of `prune` 20; `--help-all` shows the others."""
    monkeypatch.setenv("COLUMNS", columns)
    lines = run(name, "--help").out.splitlines()
    options = [line for line in lines if line.startswith("  -")]
    assert len(lines) <= 60
    assert len(options) <= (20 if name == "prune" else 22)
    assert len(options) == sum(map(len, ESSENTIAL[name].values()))
    assert max(map(len, lines)) <= int(columns)
    full = run(name, "--help-all").out
    assert "TEXT" not in full  # a choice is listed, other values have a name
    assert (name == "sweep") == ("[allocated|global|layer]" not in full)


def test_the_names_in_the_help_are_those_of_the_registries() -> None:
    """`gaprune.choices` repeats them because the registries import torch."""
    assert list(choices.ZOO) == list(ZOO)
    assert set(choices.INPUT_KINDS) == set(GENERATORS)
    assert list(choices.CRITERIA) == list(CRITERIA)
    patterns = {name: criterion.pattern for name, criterion in UNIT_CRITERIA.items()}
    assert patterns == choices.UNIT_CRITERIA
    assert list(choices.METHODS) == list(known_methods())
    named = (AUTO, PROCEDURAL, *FROM_NETWORK, *GENERATORS["image"], NOISY, *ALIASES)
    assert list(choices.CALIBRATION) == list(named)
    assert list(choices.OBJECTIVES) == list(OBJECTIVES)
    assert list(choices.PRECISIONS) == [*PRECISIONS, AUTO]
    assert list(choices.RUNTIMES) == list(RUNTIMES)
    assert list(choices.SCHEDULES) == list(SCHEDULES)
    assert list(choices.OPTIMISERS) == list(OPTIMISERS)
    assert list(choices.DECAYS) == list(DECAYS)
    assert list(choices.SWEEPS) == list(SWEEPS)
    assert list(choices.EXPORT_FORMATS) == list(EXPORTERS)
    texts = {parameter.name: parameter.help for parameter in load_command("prune").params}
    for name, number in {
        "warmup": WARMUP,
        "statistics_loss": STATISTICS_LOSS,
        "batch_cache": BATCHES,
    }.items():
        assert f"(default: {number}" in texts[name]


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
    shown = run(name, "--help-all" if name in ESSENTIAL else "--help").out
    assert max(map(len, shown.splitlines())) <= int(columns)
    words = set(re.sub(r"(?<=\s)(-\w), ", r"\1 ", shown).split())
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
