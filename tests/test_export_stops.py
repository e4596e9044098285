"""An export that is stopped at any step, in any format, leaves nothing half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import tree
from export_cases import TINY, save_bert, tiny_result
from torch import nn

import gaprune
from benchmarks.cluster.kills import CALLS
from gaprune import InputOptions, export, prune, save_run
from gaprune.exports import EXPORTERS, export_run
from gaprune.exports.model_card import CARD
from gaprune.io.manifest import MANIFEST, check_recorded, read_manifest
from gaprune.runs.job import make_job
from gaprune.runs.open_directory import open_run

QUICK = ("dense", "masks", "prune", "sparse", "semi-structured")
TRACED = ("onnx", "compact", "hf")  # take seconds each, so only steps of their own are tried
SCRIPT = Path(__file__).parent / "killed_exports.py"


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the function that gives a run for a format; each run is made once."""
    folder = tmp_path_factory.mktemp("runs")

    def run(form: str) -> Path:
        kind = {"semi-structured": "2:4", "hf": "hf", "onnx": "lenet", "compact": "lenet"}.get(form)
        path = folder / str(kind).replace(":", "-")
        if not path.exists():
            make_run(kind, path)
        return path

    return run


def make_run(kind: str | None, path: Path) -> None:
    """Write a run of a network that formats of one kind need."""
    if kind is None:
        save_run(tiny_result(), path)
    elif kind == "2:4":
        with torch.random.fork_rng():
            torch.manual_seed(4)
            model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
        save_run(prune(model, pattern=kind, inputs=InputOptions(range=(0, 1)), **TINY), path)
    else:  # named networks, which the killed process can load
        source = path.with_name("source")
        if kind == "hf":
            save_bert(source)
        # At 0.99, some channels of LeNet have no reader, which compact needs.
        target, sparsity = (f"hf:{source}", 0.5) if kind == "hf" else (kind, 0.99)
        job = make_job({"target": target, "sparsity": sparsity, **TINY})
        with open_run(path) as run_directory:
            run_directory.save(gaprune.prune_target(job.load()[0], job.settings), job)


def is_complete(path: Path) -> bool:
    """Tell whether a folder is a whole export, with every file as it was written."""
    facts = read_manifest(path)
    assert facts is not None
    for name in facts["files"]:
        check_recorded(path / name)
    names = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    return names == {*facts["files"], MANIFEST, CARD}


def killed_exports(form: str, run: Path, folder: Path, *steps: int) -> list[Path]:
    """Kill an export at every step; return the folders that they worked in."""
    export(run, "sparse" if form in TRACED else form, folder / "earlier")
    command = [sys.executable, str(SCRIPT), str(run), str(folder), form, *map(str, steps)]
    subprocess.run(command, check=True, timeout=300)
    return sorted(path for path in folder.iterdir() if path.name != "earlier")


def count_exports(folders: list[Path], earlier: dict[str, bytes | None]) -> tuple[int, int]:
    """Count new and unchanged earlier exports; fail if one is incomplete."""
    new = old = 0
    for path in (path for folder in folders for path in folder.iterdir()):
        if path.name.endswith(".partial"):
            assert path.name.startswith((".old.", ".new."))
        else:
            assert path.name in ("old", "new")
            assert is_complete(path)
            old += path.name == "old" and tree(path) == earlier
            new += path.name == "new"
    return new, old


@pytest.mark.slow
@pytest.mark.parametrize("form", QUICK)
def test_sigkill_at_any_system_call(
    form: str, run_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """Afterwards there is the earlier export, the new one or none; the next one tidies up."""
    folders = killed_exports(form, run_of(form), tmp_path)
    new, old = count_exports(folders, tree(tmp_path / "earlier"))
    assert len(folders) > 10
    assert old > len(folders) // 2 > new > 0
    for name in ("old", "new"):
        export(run_of(form), form, folders[0] / name, overwrite=True)
    assert {path.name for path in folders[0].iterdir()} == {"old", "new"}


@pytest.mark.slow
@pytest.mark.parametrize("form", TRACED)
def test_sigkill_after_a_traced_format_has_written(
    form: str, run_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """The earlier export stays, and there is no new one."""
    folders = killed_exports(form, run_of(form), tmp_path, -1)
    assert count_exports(folders, tree(tmp_path / "earlier")) == (0, 1)
    (partial,) = folders[0].glob(".new.*")
    assert (partial / EXPORTERS[form].file).is_file()  # the kill came after the write


@pytest.fixture
def default_sigint() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt; processes in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Send SIGINT to this process before its system call number `step`."""
    calls = count()

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - as the system's
            if next(calls) == step:
                os.kill(os.getpid(), signal.SIGINT)
            return real(*arguments, **options)

        return call

    for name in CALLS:
        patch.setattr(os, name, wrapped(getattr(os, name)))


@pytest.mark.usefixtures("default_sigint")
@pytest.mark.parametrize(
    ("form", "earlier"), [*((form, False) for form in QUICK), ("sparse", True)]
)
def test_ctrl_c_at_any_system_call(
    form: str, earlier: bool, run_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """Everything is as before, or the export is complete; no hidden folder is left."""
    run, path = run_of(form), tmp_path / "deep" / "out"
    if earlier:
        export(run, form, path)
    before = tree(tmp_path)
    completed = 0
    for step in count():
        with pytest.MonkeyPatch.context() as patch:
            interrupt_at(step, patch)
            try:
                export(run, form, path, overwrite=True)
            except KeyboardInterrupt:
                pass
            else:
                break
        assert [entry.name for entry in path.parent.glob("*")] in ([], ["out"])
        if tree(tmp_path) != before:
            assert is_complete(path)
            completed += 1
            if not earlier:
                for file in path.iterdir():
                    file.unlink()
                path.rmdir()
                path.parent.rmdir()
    assert step > 10
    assert completed < step / 2


@pytest.mark.parametrize(
    "form", ["sparse", *(pytest.param(form, marks=pytest.mark.slow) for form in TRACED)]
)
def test_ctrl_c_after_the_files_are_written(
    form: str,
    run_of: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither the files nor new parent folders are left."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export_run, "model_card", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(run_of(form), form, tmp_path / "new" / form)
    assert tree(tmp_path) == {}


@pytest.mark.slow
def test_the_interrupted_command_exits_with_130(
    run_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """Nothing is written."""
    script = (
        "import os, signal, sys, gaprune.exports.export_run as w; from gaprune.cli import main\n"
        "w.model_card = lambda *a: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.exit(main(['export', sys.argv[1], '--format', 'dense', '--out', 'out']))"
    )
    command = [sys.executable, "-c", script, str(run_of("dense"))]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 130
    assert "interrupted" in ran.stderr
    assert tree(tmp_path) == {}


def test_every_format_is_tested() -> None:
    """A new format belongs in one of both lists."""
    assert {*QUICK, *TRACED} == set(EXPORTERS)
