"""The scripts for clusters: what of them can be checked without one."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, Self

import jsonschema  # type: ignore[import-untyped] # Ray needs it
import pytest
import ray
import torch
import yaml  # type: ignore[import-untyped] # Ray needs it

from gaprune.cli import main

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.mark.parametrize(
    ("shell", "script"),
    [("sh", "ray_job.sh"), ("sh", "setup_venv.sh"), ("bash", "slurm.sbatch")],
)
def test_the_shell_can_read_it(shell: str, script: str) -> None:
    """Without a complaint."""
    read = subprocess.run(
        [shell, "-n", SCRIPTS / script], capture_output=True, text=True, check=False
    )
    assert (read.returncode, read.stderr) == (0, "")


def test_the_cluster_is_one_that_ray_accepts() -> None:
    """By Ray's own schema, and by what Ray adds to it."""
    from ray.autoscaler._private.util import prepare_config, validate_config  # noqa: PLC0415

    config: dict[str, Any] = yaml.safe_load((SCRIPTS / "ray-cluster.yaml").read_text())
    place = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    jsonschema.validate(config, json.loads(place.read_text()))
    whole = prepare_config(config)
    validate_config(whole)
    assert len(config["provider"]["worker_ips"]) == whole["max_workers"]


def fake(folder: Path, name: str, text: str) -> None:
    """Put a command into a folder."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def test_a_job_begins_a_run_or_goes_on_with_it(tmp_path: Path) -> None:
    """What Ray is told to run: options reach gaprune as they were given, blanks in them too."""
    fake(tmp_path / "bin", "ray", '#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\n"$@"\n')
    fake(tmp_path / "bin", "gaprune", '#!/bin/sh\nprintf "%s|" "$@"\n')
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    out = tmp_path / "my run"

    def run() -> str:
        told = subprocess.run(
            [SCRIPTS / "ray_job.sh", "net.py:make", "--weights", "my net.pt"],
            env={"PATH": path, "OUT": str(out)},
            capture_output=True,
            text=True,
            check=True,
        )
        return told.stdout

    cluster = "--ray-address|auto|"
    assert run() == f"prune|net.py:make|--weights|my net.pt|{cluster}--out|{out}|"
    (out / "checkpoint").mkdir(parents=True)
    assert run() == f"resume|{out}|{cluster}"


@pytest.mark.parametrize("command", ["prune", "resume"])
def test_the_options_that_scripts_use_are_there(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renamed option would only show on a cluster."""
    monkeypatch.setenv("COLUMNS", "200")
    assert main([command, "--help"]) == 0
    told = capsys.readouterr().out
    assert all(option in told for option in ("--ray-address", "--workers"))


class Recorder(types.ModuleType):
    """Stands for a package that is not installed: takes every call and remembers it."""

    def __init__(
        self, name: str = "", calls: list[tuple[str, tuple[object, ...]]] | None = None
    ) -> None:
        super().__init__(name)
        self.calls = [] if calls is None else calls
        self.summary: dict[str, object] = {}

    def __getattr__(self, name: str) -> Recorder:
        return Recorder(name, self.calls)

    def __call__(self, *given: object, **named: object) -> Recorder:
        self.calls.append((self.__name__, given))
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


TINY: dict[str, Any] = {
    "generations": 1,
    "steps": 1,
    "batch": 8,
    "preset": "black-box",
    "offspring": 2,
    "population": 2,
    "calibration_count": 32,
    "validation_count": 32,
}


def test_the_example_of_a_search_leaves_a_report_and_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And says where they are."""
    monkeypatch.chdir(tmp_path)
    found = runpy.run_path(str(SCRIPTS / "evolve.py"))["main"]("run", **TINY)
    told = capsys.readouterr().out
    assert f"{found.validation:.2%}" in told
    assert Path("run/report.html").is_file()
    assert Path(told.rpartition("masks: ")[2].strip()).is_file()


def test_the_example_on_ray_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None
) -> None:
    """The same masks as in this process; called again it has nothing left to do."""
    monkeypatch.chdir(tmp_path)
    example = runpy.run_path(str(SCRIPTS / "distribute.py"))["main"]
    found = example(folder="run", **TINY)
    assert found.settings["workers"] == 2
    again = example(folder="run")
    alone = runpy.run_path(str(SCRIPTS / "evolve.py"))["main"]("alone", **TINY)
    for name, mask in found.masks.items():
        assert torch.equal(mask, alone.masks[name])
        assert torch.equal(mask, again.masks[name])


def test_the_example_of_a_comparison_has_a_row_for_every_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With and without fine-tuning, and a page of all."""
    monkeypatch.chdir(tmp_path)
    found = runpy.run_path(str(SCRIPTS / "benchmark.py"))["main"]("compared", epochs=0.01, **TINY)
    assert len(found.rows) == 8
    assert all(row.accuracy is not None for row in found.rows)
    assert capsys.readouterr().out.count("% removed") == 8
    assert Path("compared/report.html").is_file()


@pytest.mark.parametrize(
    ("package", "logs", "page"),
    [("mlflow", "log_metrics", "log_artifact"), ("wandb", "log", "Html")],
)
def test_the_examples_of_trackers_log_every_generation(
    package: str, logs: str, page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And hand over a report that exists."""
    stand_in = Recorder(package)
    monkeypatch.setitem(sys.modules, package, stand_in)
    monkeypatch.chdir(tmp_path)
    tiny = {
        "generations": 2,
        "steps": 1,
        "batch": 8,
        "calibration_count": 32,
        "validation_count": 32,
    }
    runpy.run_path(str(SCRIPTS / f"log_to_{package}.py"))["main"](**tiny, preset="black-box")
    logged = [given[0] for name, given in stand_in.calls if name == logs]
    steps = [one for one in logged if isinstance(one, dict) and "validation" in one]
    assert len(steps) == 3
    assert all(one.keys() == {"best", "mean", "validation"} for one in steps)
    (shown,) = [given[0] for name, given in stand_in.calls if name == page]
    assert Path(str(shown)).read_text().startswith("<!doctype html>")
