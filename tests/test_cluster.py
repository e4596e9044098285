"""Which Ray is used and what fits on it; a real cluster of two nodes that loses one."""

from __future__ import annotations

import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from command_line import NETWORK, OWN, PRUNE, TINY
from hypothesis import given
from hypothesis import strategies as st
from started_commands import Command

from gaprune.config import make_settings
from gaprune.errors import GapruneError, InputError
from gaprune.workers import RetryPolicy, WorkerOptions
from gaprune.workers.cluster import ClusterMonitor, capacity, check_address

NODES = [{"CPU": 4.0, "GPU": 2.0}, {"CPU": 9.0}, {"GPU": 1.0}]


@pytest.mark.parametrize(
    ("threads", "gpus", "fit"),
    [(1, 0, 13), (2, 0, 6), (4, 0, 3), (1, 1, 2), (1, 0.5, 4), (1, 0.4, 4), (2, 0.1, 2), (1, 2, 1)],
)
def test_workers_fit_where_a_node_has_all_that_they_need(
    threads: int, gpus: float, fit: int
) -> None:
    """CPUs and GPUs of different nodes do not add up; 0.4 of a GPU fits on each twice."""
    assert capacity(NODES, threads, gpus) == fit


@given(st.integers(1, 64), st.integers(1, 20))
def test_a_share_of_a_gpu_fits_as_often_as_it_says(gpus: int, parts: int) -> None:
    """Whatever floats make of 1 / 3 and 1 / 10."""
    assert capacity([{"CPU": 10_000.0, "GPU": float(gpus)}], 1, 1 / parts) == gpus * parts


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:65536", "no-such-host.invalid:6379"])
def test_an_address_where_no_cluster_answers_is_refused_at_once(address: str) -> None:
    """The message names it, and says how to start one."""
    started = time.monotonic()
    with pytest.raises(GapruneError, match=rf"'{address}'.*ray start"):
        check_address(address)
    assert time.monotonic() - started < 10


def test_a_server_that_is_not_ray_is_refused_at_once() -> None:
    """Ray would try for minutes to reach a web server, or a proxy that accepts every connection."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1000)
            self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        address = f"127.0.0.1:{server.server_address[1]}"
        with pytest.raises(GapruneError, match=f"'{address}'"):
            check_address(address)
        server.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_ray_that_runs_is_accepted() -> None:
    """Its GCS answers the request, and its processes accept connections."""
    address = ray.get_runtime_context().gcs_address
    assert check_address(address) == address
    monitor = ClusterMonitor(started_here=True)
    assert set(monitor._processes) == {"GCS", "raylet"}
    monitor.check()
    assert not monitor.lost


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("name", ["GCS", "raylet"])
def test_a_process_of_ray_that_is_gone_is_noticed(name: str) -> None:
    """At the first check after its patience is over; the error names it."""
    monitor = ClusterMonitor(started_here=True)
    monitor._processes[name] = ("127.0.0.1", 1), 0.0
    with pytest.raises(GapruneError, match=name):
        monitor.check()
    assert monitor.lost


def test_auto_is_the_address_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Ray's own variable names one; elsewhere Ray looks for a cluster on this machine."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(GapruneError, match=r"'127.0.0.1:1'"):
        check_address("auto")


def test_worker_options_come_from_the_settings() -> None:
    """Every option of the command line has a field."""
    stated = {
        "workers": 3,
        "threads_per_worker": 2,
        "gpus_per_worker": 0.25,
        "ray_address": "ray://head:10001",
        "task_timeout": 9.0,
        "retries": 5,
    }
    policy = RetryPolicy(retries=5, timeout=9.0)
    expected = WorkerOptions(3, 2, 0.25, "ray://head:10001", policy)
    assert WorkerOptions.from_settings(make_settings({"sparsity": 0.5, **stated})) == expected
    assert WorkerOptions.from_settings(make_settings({"sparsity": 0.5})) == WorkerOptions()


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"gpus_per_worker": 1.5}, "gpus_per_worker: .*1.5"),
        ({"gpus_per_worker": -1}, "gpus_per_worker: "),
        ({"ray_address": "head"}, "ray_address: .*HOST:PORT.*'head'"),
        ({"ray_address": "http://head:1"}, "ray_address: .*auto"),
        ({"task_timeout": 0}, "task_timeout: "),
        ({"retries": -1}, "retries: "),
        ({"threads": 1}, "'threads'"),
    ],
)
def test_what_cannot_be_is_refused(stated: dict[str, object], message: str) -> None:
    """Before anything is started."""
    with pytest.raises(InputError, match=message):
        make_settings({"sparsity": 0.5, **stated})


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes through /proc")
@pytest.mark.parametrize("name", ["raylet", "gcs_server", "python"])
def test_after_the_loss_of_ray_or_of_the_driver_no_worker_is_left(
    name: str, start: Callable[..., Command], place: Path
) -> None:
    """If Ray is lost, the last line says how to resume."""
    endless = ("prune", *OWN, "--sparsity", "0.5", *TINY, "--generations", "1000000")
    command = start(*endless, "--out", "run", "--workers", "2")
    command.wait_for("generation 3/")
    lines = command.descendants()
    numbers = [number for number, line in lines.items() if line.split()[0].endswith(f"/{name}")]
    os.kill(command.process.pid if name == "python" else numbers[0], signal.SIGKILL)
    ran = command.end()
    if name != "python":
        assert ran.code == 1
        assert "gaprune resume run" in ran.err.splitlines()[-1]
        assert ".cc:" not in ran.err
    deadline = time.monotonic() + 10
    while left := list(command.descendants().values()):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


@pytest.mark.slow
def test_the_loss_of_a_node_loses_nothing(tmp_path: Path) -> None:
    """Tasks in flight run again, genes that lay there are made again: the same bits."""
    ran = subprocess.run(
        [sys.executable, Path(__file__).parent / "lost_node.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    (line,) = (line for line in ran.stdout.splitlines() if line.startswith('{"equal"'))
    facts = json.loads(line)
    assert facts["equal"]
    assert facts["lost"] == 2
    assert any("2 so far" in text for text in facts["warnings"])
    assert not facts["still_connected"]


@pytest.mark.slow
def test_a_cluster_is_reached_through_rays_client(
    start: Callable[..., Command], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that asks for a token, as Ray's own does; masks are those of a run without it.

    The network is part of a package that the cluster's own processes can only have from Ray.
    """
    pytest.importorskip("grpc", reason="Ray's client is not installed")
    package = place / "project" / "parts"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "net.py").write_text("from .blocks import make\n")
    (package / "blocks.py").write_text(
        f"{NETWORK}\nif {str(place)!r} in __file__ and 'AT_HOME' not in os.environ:\n"
        "    raise ImportError('read from the folder of the user')\n"
    )
    with subprocess.Popen(
        [sys.executable, Path(__file__).parent / "client_server.py"],
        cwd=place,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        monkeypatch.setenv("AT_HOME", "1")  # the cluster has started without it
        run = ("prune", "project/parts/net.py:make", *PRUNE[2:], "--no-save", "--json")
        there = start(*run, "--workers", "2", "--ray-address", address).end()
        server.stdin.close()
    here = start(*run).end()
    assert (there.code, here.code) == (0, 0), there.err
    records = [json.loads(ran.out) for ran in (there, here)]
    for record in records:
        for name in ("seconds", "settings"):
            del record[name]
    assert records[0] == records[1]
