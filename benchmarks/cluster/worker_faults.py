"""Faults of workers during a real `gaprune prune`."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections import Counter
from dataclasses import replace

import torch
from ray.cluster_utils import Cluster
from safetensors.torch import save_file

from benchmarks.cluster.fault_case import NETWORK, PRUNE, FaultCase, Row, read_output
from benchmarks.cluster.faulty_network import make_large

WORKERS = ("--workers", "2")
STORE = 80 * 1024**2  # bytes, Ray's smallest; twelve genomes of the large network take 200 MB
CPP = re.compile(r"\.(cc|h):\d+|\[state-dump\]")  # what Ray's core prints before it ends a process


def recovers(case: FaultCase, failure: str, *more: str) -> Row:
    """Make one worker fail once: only its evaluation is repeated, on another worker."""
    (case.plan / "failure").write_text(failure, encoding="utf-8")
    command = case.prune(*WORKERS, *more)
    ended = command.finish()
    done, redone = case.plan / "done", case.plan / "redone"
    seconds = None
    if redone.exists():
        seconds = float(redone.read_text(encoding="utf-8"))
        seconds -= float(done.read_text(encoding="utf-8").split()[1])
    return case.row(ended, seconds, survived=redone.exists() and command.leaves_no_process())


def leave(case: FaultCase) -> Row:
    """Call `os._exit` in a worker."""
    return recovers(case, "exit")


def crash(case: FaultCase) -> Row:
    """Cause a segmentation fault in a worker."""
    return recovers(case, "segfault")


def allocate(case: FaultCase) -> Row:
    """Exceed the memory limit of a worker."""
    return recovers(case, "memory")


def hang(case: FaultCase) -> Row:
    """Make a worker hang; the task timeout is two seconds."""
    return recovers(case, "hang", "--task-timeout", "2")


def fail(case: FaultCase) -> Row:
    """Raise an exception in user code: the run stops and names it; fixed, it resumes."""
    (case.plan / "failure").write_text("raise", encoding="utf-8")
    command = case.prune(*WORKERS)
    ended = command.finish()
    clear = ended.code in (1, 2) and "ZeroDivisionError" in ended.err
    (case.plan / "failure").unlink()
    return case.resumed(ended, survived=clear and command.leaves_no_process())


def poison(case: FaultCase) -> Row:
    """Make one candidate kill every worker that scores it: it is skipped with a warning.

    The worst candidate is chosen, so that skipping it does not change the result.
    """
    for more in (("--generations", "0"), ()):
        case.prune(*WORKERS, *more, "--overwrite").finish()
        if more:
            seeds = {key for _, _, key in _calls(case)}
    calls = [call for call in _calls(case) if call[2] not in seeds]
    least = min(rows for rows, _, _ in calls)
    times = Counter(key for _, _, key in calls)
    worst = min(call for call in calls if call[0] == least and times[call[2]] == 1)
    (case.plan / "failure").write_text("exit", encoding="utf-8")
    (case.plan / "poison").write_text(worst[2], encoding="utf-8")
    command = case.prune(*WORKERS, "--overwrite")
    before = command.read_until("is replaced") and time.monotonic()
    command.read_until(" 3 times")
    seconds = time.monotonic() - before if before else None
    ended = command.finish()
    warned = re.search(r"generation \d+: .* 3 times", ended.err)
    return case.row(ended, seconds, survived=warned is not None)


def _calls(case: FaultCase) -> list[tuple[int, float, str]]:
    calls = []
    for file in (case.plan / "calls").iterdir():
        for line in file.read_text(encoding="utf-8").splitlines():
            rows, value, key = line.split()
            calls.append((int(rows), float(value), key))
    return calls


def kill_all(case: FaultCase) -> Row:
    """Kill all workers at once: they are replaced."""
    command = case.prune(*WORKERS)
    command.wait_for("generation 3/")
    for actor in command.actors():
        os.kill(actor, signal.SIGKILL)
    started = time.monotonic()
    command.read_until("is replaced")
    command.read_until("generation ")
    seconds = time.monotonic() - started
    return case.row(command.finish(), seconds, survived=command.leaves_no_process())


def kill_all_for_good(case: FaultCase) -> Row:
    """Kill all workers where none can start again: the run stops and is resumed later."""
    command = case.prune(*WORKERS)
    command.wait_for("generation 3/")
    (case.plan / "locked").touch()
    for actor in command.actors():
        os.kill(actor, signal.SIGKILL)
    ended = command.finish()
    clear = ended.code == 1 and "all 2 are lost" in ended.err and "gaprune resume run" in ended.err
    (case.plan / "locked").unlink()
    return case.resumed(ended, *WORKERS, survived=clear and command.leaves_no_process())


def fail_to_start(case: FaultCase) -> Row:
    """Let no worker start: the run stops at once with the reason; fixed, it resumes."""
    (case.plan / "locked").touch()
    command = case.prune(*WORKERS)
    ended = command.finish()
    clear = ended.code == 1 and "the network's file is locked" in ended.err
    (case.plan / "locked").unlink()
    return case.resumed(ended, *WORKERS, survived=clear and command.leaves_no_process())


def lose_node(case: FaultCase) -> Row:
    """Remove one of two nodes, with two of the three workers."""
    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        second = cluster.add_node(num_cpus=2)
        command = case.prune("--ray-address", cluster.address, "--workers", "3")
        command.wait_for("generation 3/")
        started = time.monotonic()
        threading.Thread(
            target=cluster.remove_node, args=(second,), kwargs={"allow_graceful": False}
        ).start()
        command.read_until("a worker was lost")
        command.read_until("generation ")
        seconds = time.monotonic() - started
        ended = command.finish()
        return case.row(ended, seconds, survived="a worker was lost" in ended.err)
    finally:
        cluster.shutdown()


def kill_raylet(case: FaultCase) -> Row:
    """Kill the process of Ray that manages this node."""
    return lose_ray(case, "raylet")


def kill_gcs(case: FaultCase) -> Row:
    """Kill the process of Ray that manages the cluster."""
    return lose_ray(case, "gcs_server")


def lose_ray(case: FaultCase, name: str) -> Row:
    """Kill a process of Ray itself: the run stops with one error line and is resumed."""
    command = case.prune(*WORKERS)
    command.wait_for("generation 3/")
    for number, line in command.descendants().items():
        if line.split()[0].endswith(f"/{name}"):
            os.kill(number, signal.SIGKILL)
    started = time.monotonic()
    ended = command.finish()
    seconds = time.monotonic() - started
    last = ended.err.strip().splitlines()[-1]
    clear = last.startswith("gaprune: error: workers: ") and "gaprune resume run" in last
    clear = clear and ended.code == 1 and not CPP.search(ended.err + ended.out)
    row = case.resumed(ended, *WORKERS, survived=clear and command.leaves_no_process())
    return replace(row, note=f"ended after {seconds:.1f} s; {row.note}")


def fill_store(case: FaultCase) -> Row:
    """Evolve genomes that do not fit into the object store of Ray together."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(make_large().state_dict(), case.folder / "net.safetensors")
    large = (PRUNE[0], f"{NETWORK}:make_large", *PRUNE[2:], "--generations", "2")
    alone = case.start(*large, "--out", "alone").finish()
    head = {"num_cpus": 2, "object_store_memory": STORE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        command = case.start(*large, *WORKERS, "--ray-address", cluster.address)
        ended = command.finish()
    finally:
        cluster.shutdown()
    finished = (alone.code, ended.code) == (0, 0)
    right = finished and read_output(case.folder / "alone") == read_output(case.run)
    return Row(right, 0 if finished else None, 0.0, f"{ended.err[-200:]}" if ended.code else "")


def crowd(case: FaultCase) -> Row:
    """Start three workers on two CPUs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:2])
    try:
        command = case.prune("--workers", "3")
    finally:
        os.sched_setaffinity(0, before)
    ended = command.finish()
    return case.row(ended, 0.0, survived=command.leaves_no_process())
