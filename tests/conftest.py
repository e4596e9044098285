"""Shared by all tests: one torch thread, reproducible examples, one Ray session."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from command_line import Run
    from started_commands import Command

# Ray reads these when it starts: send no usage report, and do not warn about a future default.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

# Runs of a factory are remembered; the home directory of whoever runs the tests stays as it is.
STATE = tempfile.TemporaryDirectory(prefix="gaprune-state-")
os.environ["XDG_STATE_HOME"] = STATE.name

# Results are reproducible for a fixed number of threads, and two test processes share two cores.
torch.set_num_threads(1)

# Waiting for the disk protects files from a power cut, which no test can cause, and takes a fifth
# of the time of tests that write many runs. Started commands and actors wait as for a user.
setattr(os, "fsync", lambda _descriptor: None)  # noqa: B010 # mypy forbids an assignment

# The first example of a property often pays for an import, so deadlines would fail at random.
# More examples find more: `HYPOTHESIS_EXAMPLES=1000 make test`.
EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "30"))
settings.register_profile("local", deadline=None, max_examples=EXAMPLES)
settings.register_profile(
    "ci", deadline=None, max_examples=EXAMPLES, derandomize=True, print_blob=True
)
settings.load_profile("ci" if os.environ.get("CI") else "local")

# Files with quick tests that start Ray: they run first, because they take longest, and in one
# process, because two Ray sessions would compete for two cores.
RAY_FILES = ("test_ray_pool.py", "test_workers.py", "test_pipeline.py", "test_layer_tasks.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files that use Ray first."""
    items.sort(key=lambda item: item.path.name not in RAY_FILES)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:  # noqa: ANN401 - xdist's
    """Run the tests of a file in one process, and `RAY_FILES` in the same one.

    Shared fixtures are then made once. Groups of pytest-xdist (`--dist loadgroup`) do not work with
    pytest 9.2: it ignores the ids they change.
    """
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415 - optional

    class FileScheduling(LoadScopeScheduling):  # type: ignore[misc]
        """Schedules whole files."""

        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.split("::", maxsplit=1)[0]).name
            return "ray" if file in RAY_FILES else file

    return FileScheduling(config, log)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A real Ray with two CPUs, started by the first test that needs it and stopped at the end."""
    import ray  # noqa: PLC0415 - importing Ray takes seconds

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=256 * 1024**2,
        # actors are separate processes and must import from tests/ and the checkout
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}},
    )
    yield
    ray.shutdown()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a gaprune command in this process."""
    from command_line import run_here  # noqa: PLC0415 - it imports all of gaprune

    return lambda *arguments: run_here(arguments, capsys)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a network, its weights, and some labelled inputs."""
    from command_line import fill  # noqa: PLC0415 - it imports all of gaprune

    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def start(place: Path) -> Iterator[Callable[..., Command]]:
    """Start commands as processes in the working directory; kill the remaining ones at the end."""
    from started_commands import starting  # noqa: PLC0415 - it imports all of gaprune

    with starting(place) as call:
        yield call
