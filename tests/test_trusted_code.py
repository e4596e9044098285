"""Code that a file names or holds runs only for the user who named it, or who confirms it."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from channel_networks import IMAGE, Separable, built
from command_line import NETWORK, OWN, PRUNE, Run
from documents import ROOT
from export_cases import TINY
from report_runs import reseal

import gaprune
from gaprune.errors import InputError
from gaprune.io.manifest import file_entries, sealed
from gaprune.io.trusted_code import CODE_KEYS, named_code

BLACK_BOX = ("--preset", "black-box", "--objective", "net.py:grade")


def executed(folder: Path) -> list[str]:
    """Return the names of the payloads that have run."""
    return sorted(path.name for path in folder.glob("EXECUTED-*"))


class Payload:
    """Unpickling it writes a file."""

    def __init__(self, folder: Path, name: str) -> None:
        self.command = f"echo x > '{folder}/EXECUTED-{name}'"

    def __reduce__(self) -> tuple[object, tuple[str]]:
        """Return the call that unpickling makes."""
        return os.system, (self.command,)


def pickled(content: object) -> bytes:
    """Return what `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def write_hostile(program: Path, kind: str, folder: Path) -> None:
    """Change a program of `torch.export` such that loading it writes a file."""
    with zipfile.ZipFile(program) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    if kind == "samples":
        name = next(name for name in members if "sample_inputs" in name)
        members[name] = pickled(({"x": 1}, Payload(folder, kind)))
    elif kind == "weights":
        name = next(name for name in members if "weights_config" in name)
        config = json.loads(members[name])["config"]
        for entry in config.values():
            entry["use_pickle"] = True
        weight = next(iter(config.values()))["path_name"]
        members[name] = json.dumps({"config": config}).encode()
        members[next(n for n in members if n.endswith(f"/{weight}"))] = pickled(
            Payload(folder, kind)
        )
    else:
        name = next(name for name in members if name.endswith("models/model.json"))
        command = f"__import__('os').system('touch {folder}/EXECUTED-{kind}')"
        text = re.sub(
            r'"expr_str": "[^"]*"', lambda _: f'"expr_str": "{command}"', members[name].decode()
        )
        members[name] = text.encode()
    with zipfile.ZipFile(program, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.fixture(scope="module")
def compact(tmp_path_factory: pytest.TempPathFactory) -> tuple[gaprune.Target, Path]:
    """A dense network, and the folder of a compact export of it."""
    folder = tmp_path_factory.mktemp("compact") / "out"
    inputs = gaprune.InputOptions(shape=IMAGE, range=(0, 1))
    result = gaprune.prune(
        built(Separable),
        inputs=inputs,
        pattern="channel",
        sparsity=0.5,
        **{**TINY, "calibration": ("procedural",)},
    )
    gaprune.export(result, "compact", folder)
    return result.target, folder


@pytest.mark.parametrize("kind", ["samples", "weights", "expression"])
def test_a_program_is_never_loaded(
    kind: str, compact: tuple[gaprune.Target, Path], tmp_path: Path
) -> None:
    """Alone it is refused. In a compact export the network is measured without it."""
    target, export = compact
    folder = shutil.copytree(export, tmp_path / "export")
    write_hostile(folder / "model.pt2", kind, tmp_path)
    with pytest.raises(InputError, match="SHA-256"):  # it is not the one that was written
        gaprune.measure(folder / "model.pt2", target=target, trust_code=True)
    manifest = json.loads((folder / "export.json").read_text())
    shutil.copy(folder / "model.pt2", tmp_path / "alone.pt2")
    with pytest.raises(InputError, match="trust_code=True"):
        gaprune.measure(tmp_path / "alone.pt2", target=target)
    manifest["files"].pop("model.pt2")
    (folder / "export.json").write_text(json.dumps(sealed(manifest)))
    with pytest.raises(InputError, match="trust_code=True"):
        gaprune.measure(folder / "model.pt2", target=target)
    manifest["files"] |= file_entries(folder, ["model.pt2"])
    (folder / "export.json").write_text(json.dumps(sealed(manifest)))
    program = gaprune.measure(folder / "model.pt2", target=target, runtimes=["torch"], batches=[1])
    assert program[0].kind == "program"
    assert executed(tmp_path) == []


def test_a_confirmed_program_is_loaded(
    compact: tuple[gaprune.Target, Path], tmp_path: Path
) -> None:
    """It gives the figures of the compact export, as does the state dict of that export."""
    target, export = compact
    shutil.copy(export / "model.pt2", tmp_path / "alone.pt2")
    options = {"target": target, "runtimes": ["torch"], "batches": [1], "trust_code": True}
    files = (tmp_path / "alone.pt2", export / "model.pt2", export / "model.safetensors")
    alone, program, state = gaprune.measure(*files, **options)  # type: ignore[arg-type]
    assert alone.agreement == program.agreement == state.agreement
    assert alone.parameters == program.parameters == state.parameters
    assert alone.macs is not None
    assert program.macs is not None
    assert alone.macs.total == program.macs.total


@pytest.fixture
def foreign(place: Path, run: Run) -> Path:
    """A run of somebody else: a copied folder whose factory and objective write files."""
    assert run(*PRUNE, *BLACK_BOX, "--out", "own").code == 0
    payload = "open('EXECUTED-{}', 'w').close()\n"
    (place / "evil.py").write_text(payload.format("factory") + NETWORK)
    shutil.copytree("own", "foreign")
    config = Path("foreign/config.toml")
    config.write_text(config.read_text().replace("net.py", "evil.py"))
    reseal(place / "foreign")
    return place / "foreign"


@pytest.mark.parametrize(
    "command",
    [
        ("measure", "foreign/pruned.safetensors"),
        ("measure", "own/pruned.safetensors", "--target", "foreign"),
        ("export", "foreign", "--format", "onnx"),
        ("resume", "foreign", "--generations", "2"),
        ("prune", "--config", "foreign/config.toml"),
        ("prune", "net.py:make", "--config", "foreign/config.toml"),  # its objective is left
        ("compare", "--config", "methods.toml"),
    ],
)
def test_code_of_another_user_does_not_run(
    command: tuple[str, ...], foreign: Path, run: Run
) -> None:
    """The error is one line that lists the code, the file that names it, and the option."""
    Path("methods.toml").write_text(
        'target = "mnist-mlp"\nsparsity = 0.5\nmethods = "magnitude,evil.py:grade"\n'
    )
    if command[0] == "resume":  # the checkpoint does not fit another objective
        config = foreign / "config.toml"
        config.write_text(config.read_text().replace("evil.py:grade", "net.py:grade"))
    ran = run(*command)
    assert (ran.code, ran.out, executed(foreign.parent)) == (2, "", [])
    assert ran.err.count("\n") == 1
    assert re.search(r"(foreign/config|methods)\.toml .*evil\.py:\w+.*--trust-code", ran.err)


def test_nothing_runs_where_no_code_is_needed(foreign: Path, run: Run) -> None:
    """Reading a run works, but does not make its code known: that of an export neither runs."""
    for command in (
        ("report", "foreign"),
        ("watch", "foreign"),
        ("export", "foreign", "--format", "dense", "--out", "dense"),
    ):
        assert run(*command, "--json").code == 0
    assert run("measure", "dense/model.safetensors").code == 2
    assert executed(foreign.parent) == []
    confirmed = ("--trust-code", "--runtimes", "torch", "--quiet")
    assert run("measure", "dense/model.safetensors", *confirmed).code == 0
    assert executed(foreign.parent) == ["EXECUTED-factory"]


def test_own_runs_need_no_option(place: Path, run: Run) -> None:
    """A run, its exports and a comparison are known to their user until the code changes."""
    assert run(*PRUNE, *BLACK_BOX, "--out", "run").code == 0
    assert run("resume", "run", "--generations", "2").code == 0
    assert run("export", "run", "--format", "dense").code == 0
    fast = ("--runtimes", "torch", "--quiet")
    for file in ("run/pruned.safetensors", "run-dense/model.safetensors"):
        assert run("measure", file, *fast).code == 0
    assert run("prune", "--config", "run/config.toml", "--no-save").code == 0
    compare = ("compare", *OWN, "--sparsity", "0.5", "--methods", "magnitude", "--out", "table")
    assert run(*compare).code == 0
    assert run("compare", "--config", "table/config.toml", "--out", "table").code == 0
    shutil.move("run", "moved")
    assert run("resume", "moved").code == 2
    shutil.move("moved", "run")
    assert run("resume", "run").code == 0
    with (place / "net.py").open("a") as code:
        code.write("# another line\n")
    assert run("resume", "run").code == 2
    assert run("resume", "run", "--trust-code").code == 0
    assert run("resume", "run").code == 0


def test_without_a_writable_home_the_option_is_needed(
    place: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no error for the run itself."""
    (place / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(place / "file"))
    assert run(*PRUNE, "--out", "run").code == 0
    assert run("resume", "run").code == 2
    assert run("resume", "run", "--trust-code").code == 0


def test_code_is_found_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in lists, joined by commas, behind links, and in paths with commas and colons."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("")
    (tmp_path / "link.txt").symlink_to("net.py")
    config = {
        "target": "link.txt:make",
        "objective": "a:b,c.py:score",
        "methods": ["all", "lamp, own.py:criterion"],
        "calibration": ["images:net.py"],
    }
    assert {code.identity for code in named_code(config)} >= {
        f"{tmp_path}/net.py:make",
        f"{tmp_path}/a:b,c.py:score",
        f"{tmp_path}/own.py:criterion",
    }
    harmless = {"target": "hf:a/b", "objective": "kl", "methods": ["imp:cubic"], "seed": 1}
    assert list(named_code(harmless)) == []


def test_every_key_that_names_code_is_checked() -> None:
    """User code is imported for `CODE_KEYS` only: a new key must be added there."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "gaprune").rglob("*.py")]
    calls = [key for text in sources for key in re.findall(r'load_function\(\w+, "(\w+)"\)', text)]
    assert sorted(calls) == sorted(CODE_KEYS)
    assert sum(text.count("load_function(") for text in sources) == len(CODE_KEYS) + 1
