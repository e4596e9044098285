"""An export that is stopped, at any step and in any format, leaves nothing half-written."""

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
from export_cases import TINY, tiny_result
from torch import nn

import gaprune
from benchmarks.cluster.kills import CALLS
from gaprune import InputOptions, export, prune, save_run
from gaprune.export import EXPORTERS, export_run
from gaprune.export.model_card import CARD
from gaprune.io.manifest import MANIFEST, check_exported, read_manifest
from gaprune.models.sources.optional_packages import import_extra
from gaprune.runs.job import make_job
from gaprune.runs.open_directory import open_run

QUICK = ("dense", "masks", "prune", "sparse", "semi-structured")
TRACED = ("onnx", "compact", "hf")  # seconds each: only the steps that differ are tried
SCRIPT = Path(__file__).parent / "killed_exports.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run that can be exported in a format, made once."""
    folder = tmp_path_factory.mktemp("runs")
    made: dict[str, Path] = {}

    def run(form: str) -> Path:
        name = form if form in _RUNS else "any"
        if name not in made:
            made[name] = _RUNS[name](folder, folder / name)
        return made[name]

    return run


def of_any(folder: Path, place: Path) -> Path:
    """Prune a small network in memory."""
    return save_run(tiny_result(), place)


def two_of_four(folder: Path, place: Path) -> Path:
    """Prune layers 2:4."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    result = prune(model, pattern="2:4", inputs=InputOptions(range=(0, 1)), **TINY)
    return save_run(result, place)


def of_transformers(folder: Path, place: Path) -> Path:
    """Prune a network of `hf:FOLDER`."""
    transformers = import_extra("transformers", "hf", "test")
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32}
    config = transformers.BertConfig(**sizes, num_attention_heads=2)
    transformers.BertModel(config).eval().save_pretrained(folder / "source")
    return named(f"hf:{folder / 'source'}", 0.5, place)


def of_the_zoo(folder: Path, place: Path) -> Path:
    """Prune a network so far that nobody reads some channels."""
    return named("lenet", 0.99, place)


def named(target: str, sparsity: float, place: Path) -> Path:
    """Prune a network that the run names, so that a process of its own can load it."""
    job = make_job({"target": target, "sparsity": sparsity, **TINY})
    with open_run(place) as run_directory:
        return run_directory.save(gaprune.prune_target(job.load()[0], job.settings), job)


_RUNS: dict[str, Callable[[Path, Path], Path]] = {
    "any": of_any,
    "semi-structured": two_of_four,
    "onnx": of_the_zoo,
    "compact": of_the_zoo,
    "hf": of_transformers,
}


def is_whole(place: Path) -> bool:
    """Tell whether a folder is a complete export, every file as it was written."""
    facts = read_manifest(place)
    assert facts is not None
    names = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    for name in facts["files"]:
        check_exported(place / name)
    return names == {*facts["files"], MANIFEST, CARD}


def stopped(form: str, run: Path, folder: Path, *steps: int) -> list[Path]:
    """Kill exports at every step; return the folders in which they were at work."""
    export(run, "sparse" if form in TRACED else form, folder / "earlier")
    command = [sys.executable, str(SCRIPT), str(run), str(folder), form, *map(str, steps)]
    subprocess.run(command, check=True, timeout=300)
    return sorted(path for path in folder.iterdir() if path.name != "earlier")


def check(places: list[Path], earlier: dict[str, bytes | None]) -> tuple[int, int]:
    """Look at what killed exports left; return how often the new and the earlier one were there."""
    new = old = 0
    for place in places:
        for path in place.iterdir():
            if path.name.endswith(".partial"):
                assert path.name.startswith((".old.", ".new."))
                continue
            assert path.name in ("old", "new")
            if tree(path) == earlier:
                old += path.name == "old"
            assert is_whole(path)
            new += path.name == "new"
    return new, old


@pytest.mark.slow
@pytest.mark.parametrize("form", QUICK)
def test_a_kill_at_any_call_to_the_system(
    form: str, runs: Callable[[str], Path], tmp_path: Path
) -> None:
    """What has the name of an export is whole: the earlier one or the new one, or there is none."""
    places = stopped(form, runs(form), tmp_path)
    assert len(places) > 10
    new, old = check(places, tree(tmp_path / "earlier"))
    assert old > len(places) // 2  # until the names change it stays
    assert 0 < new < len(places) // 2
    last = places[0]
    for name in ("old", "new"):  # the next one clears up what was left
        export(runs(form), form, last / name, overwrite=True)
    assert {path.name for path in last.iterdir()} == {"old", "new"}


@pytest.mark.slow
@pytest.mark.parametrize("form", TRACED)
def test_a_kill_in_formats_that_are_traced(
    form: str, runs: Callable[[str], Path], tmp_path: Path
) -> None:
    """As soon as their files are there: the earlier export stays, and there is no new one."""
    places = stopped(form, runs(form), tmp_path, -1)
    assert check(places, tree(tmp_path / "earlier")) == (0, 1)
    (left,) = (path for path in places[0].iterdir() if path.name.startswith(".new."))
    assert (left / EXPORTERS[form].file).is_file()  # it was killed late enough


@pytest.fixture
def listening() -> Iterator[None]:
    """Let Ctrl-C raise here as in a shell; what is started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C at the call number `step` to the system from now on."""
    calls = count()

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - as the system's
            if next(calls) == step:
                os.kill(os.getpid(), signal.SIGINT)
            return real(*arguments, **options)

        return call

    for name in CALLS:
        patch.setattr(os, name, wrapped(getattr(os, name)))


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize("form", QUICK)
@pytest.mark.parametrize("earlier", [False, True])
def test_ctrl_c_at_any_call_to_the_system(
    form: str, earlier: bool, runs: Callable[[str], Path], tmp_path: Path
) -> None:
    """Everything is as before, or the export is there as a whole; no hidden folder is left."""
    run = runs(form)
    place = tmp_path / "deep" / "out"
    if earlier:
        export(run, form, place)
    before = tree(tmp_path)
    came_through = 0
    for step in count():
        with pytest.MonkeyPatch.context() as patch:
            interrupt_at(step, patch)
            try:
                export(run, form, place, overwrite=True)
            except KeyboardInterrupt:
                pass
            else:
                break
        assert [path.name for path in place.parent.glob("*")] in ([], ["out"])
        if tree(tmp_path) != before:
            assert is_whole(place)
            came_through += 1
            for path in (place, place.parent) if not earlier else ():
                _remove(path)
    assert step > 10
    assert came_through < step / 2


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


@pytest.mark.slow
def test_ctrl_c_after_a_traced_format_has_written(
    runs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX, a program, a folder of transformers: nothing is left of them."""
    for form in TRACED:
        run = runs(form)

        def stop(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(export_run, "model_card", stop)
        with pytest.raises(KeyboardInterrupt):
            export(run, form, tmp_path / "new" / form)
        assert tree(tmp_path) == {}


def test_every_format_is_tried() -> None:
    """A new one belongs in one of both lists."""
    assert {*QUICK, *TRACED} == set(EXPORTERS)
