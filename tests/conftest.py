"""What all tests share: one torch thread, reproducible examples, one Ray for those that need it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from command_line import Run
    from started_commands import Command

# Read by Ray when it starts: no report over the network, no warning about its future default.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

# Results are promised for a fixed number of threads, and two busy processes starve each other.
torch.set_num_threads(1)

# The first example of a property often pays for an import, so a deadline would strike at random.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file in one process, and all that start Ray in the same, first of all.

    They take longest, and two of them beside each other starve. Without pytest-xdist this is only
    an order.
    """
    heavy = {
        item.path
        for item in items
        if "ray_session" in getattr(item, "fixturenames", ()) or item.get_closest_marker("slow")
    }
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if item.path in heavy else item.path.name))
    items.sort(key=lambda item: item.path not in heavy)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A real Ray of two CPUs, started by the first test that asks and stopped after the last."""
    import ray  # noqa: PLC0415 - seconds that most test runs can do without

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=256 * 1024**2,
        # actors are started elsewhere and must find what tests/ and the checkout define
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}},
    )
    yield
    ray.shutdown()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command of gaprune in this process."""
    from command_line import run_here  # noqa: PLC0415 - it imports all of gaprune

    return lambda *arguments: run_here(arguments, capsys)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a network, its weights, and some inputs with labels."""
    from command_line import fill  # noqa: PLC0415 - it imports all of gaprune

    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def start(place: Path) -> Iterator[Callable[..., Command]]:
    """Start commands as processes in `place`; whatever is left of them at the end is killed."""
    from started_commands import starting  # noqa: PLC0415 - it imports all of gaprune

    with starting(place) as call:
        yield call
