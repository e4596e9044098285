"""Scripts for clusters, as far as they run without one, and the example scripts."""

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
from comparison_cases import QUICK

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.mark.parametrize(
    ("shell", "script"),
    [("sh", "ray_job.sh"), ("sh", "setup_venv.sh"), ("bash", "slurm.sbatch")],
)
def test_shell_scripts_parse(shell: str, script: str) -> None:
    """The shell reports no error."""
    checked = subprocess.run(
        [shell, "-n", SCRIPTS / script], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_cluster_is_one_that_ray_accepts() -> None:
    """Ray's schema and validation accept the file."""
    from ray.autoscaler._private.util import prepare_config, validate_config  # noqa: PLC0415

    config: dict[str, Any] = yaml.safe_load((SCRIPTS / "ray-cluster.yaml").read_text())
    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    jsonschema.validate(config, json.loads(schema.read_text()))
    prepared = prepare_config(config)
    validate_config(prepared)
    assert len(config["provider"]["worker_ips"]) == prepared["max_workers"]


def fake(folder: Path, name: str, text: str) -> None:
    """Write an executable into a folder."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def test_a_job_starts_or_resumes_a_run(tmp_path: Path) -> None:
    """Options reach gaprune unchanged, spaces included."""
    fake(tmp_path / "bin", "ray", '#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\n"$@"\n')
    fake(tmp_path / "bin", "gaprune", '#!/bin/sh\nprintf "%s|" "$@"\n')
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    out = tmp_path / "my run"

    def run() -> str:
        job = subprocess.run(
            [SCRIPTS / "ray_job.sh", "net.py:make", "--weights", "my net.pt"],
            env={"PATH": path, "OUT": str(out)},
            capture_output=True,
            text=True,
            check=True,
        )
        return job.stdout

    cluster = "--ray-address|auto|"
    assert run() == f"prune|net.py:make|--weights|my net.pt|{cluster}--out|{out}|"
    (out / "checkpoint").mkdir(parents=True)
    assert run() == f"resume|{out}|{cluster}"


class Recorder(types.ModuleType):
    """Replaces a package that is not installed and records all calls."""

    def __init__(
        self, name: str = "", calls: list[tuple[str, tuple[object, ...]]] | None = None
    ) -> None:
        super().__init__(name)
        self.calls = [] if calls is None else calls
        self.summary: dict[str, object] = {}

    def __getattr__(self, name: str) -> Recorder:
        return Recorder(name, self.calls)

    def __call__(self, *arguments: object, **_: object) -> Recorder:
        self.calls.append((self.__name__, arguments))
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


TINY: dict[str, Any] = {**QUICK, "preset": "black-box"}


def test_the_search_example_writes_a_report_and_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints where they are."""
    monkeypatch.chdir(tmp_path)
    result = runpy.run_path(str(SCRIPTS / "evolve.py"))["main"]("run", **TINY)
    output = capsys.readouterr().out
    assert f"{result.validation_agreement:.2%}" in output
    assert Path("run/report.html").is_file()
    assert Path(output.rpartition("masks: ")[2].strip()).is_file()


@pytest.mark.slow
def test_the_ray_example_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None
) -> None:
    """The masks equal those of a serial run; a second call returns the same result."""
    monkeypatch.chdir(tmp_path)
    example = runpy.run_path(str(SCRIPTS / "distribute.py"))["main"]
    result = example(folder="run", **TINY)
    assert result.settings["workers"] == 2
    again = example(folder="run")
    serial = runpy.run_path(str(SCRIPTS / "evolve.py"))["main"]("serial", **TINY)
    for name, mask in result.masks.items():
        assert torch.equal(mask, serial.masks[name])
        assert torch.equal(mask, again.masks[name])


@pytest.mark.parametrize(
    ("package", "logs", "page"),
    [("mlflow", "log_metrics", "log_artifact"), ("wandb", "log", "Html")],
)
def test_the_tracker_examples_log_every_generation(
    package: str, logs: str, page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They also log the report."""
    stand_in = Recorder(package)
    monkeypatch.setitem(sys.modules, package, stand_in)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(SCRIPTS / f"log_to_{package}.py"))["main"](**{**TINY, "generations": 2})
    logged = [arguments[0] for name, arguments in stand_in.calls if name == logs]
    steps = [entry for entry in logged if isinstance(entry, dict) and "validation" in entry]
    assert len(steps) == 3
    assert all(entry.keys() == {"best", "mean", "validation"} for entry in steps)
    (report,) = [arguments[0] for name, arguments in stand_in.calls if name == page]
    assert Path(str(report)).read_text().startswith("<!doctype html>")
