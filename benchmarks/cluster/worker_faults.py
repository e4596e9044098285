"""Faults of workers, while a real command searches on them."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections import Counter

from ray.cluster_utils import Cluster

from benchmarks.cluster.trial import Row, Trial

WORKERS = ("--workers", "2")


def goes_on(trial: Trial, misdeed: str, *more: str) -> Row:
    """One misdeed at one worker: the evaluation is done again elsewhere, nothing is repeated."""
    (trial.plan / "misdeed").write_text(misdeed, encoding="utf-8")
    command = trial.prune(*WORKERS, *more)
    ended = command.finish()
    done, redone = trial.plan / "done", trial.plan / "redone"
    seconds = None
    if redone.exists():
        seconds = float(redone.read_text(encoding="utf-8"))
        seconds -= float(done.read_text(encoding="utf-8").split()[1])
    return trial.row(ended, seconds, survived=redone.exists() and command.leaves_nobody())


def leave(trial: Trial) -> Row:
    """Call `os._exit` in a worker."""
    return goes_on(trial, "exit")


def crash(trial: Trial) -> Row:
    """Let a worker touch memory that is not there."""
    return goes_on(trial, "segfault")


def allocate(trial: Trial) -> Row:
    """Let a worker need more memory than it may have."""
    return goes_on(trial, "memory")


def hang(trial: Trial) -> Row:
    """Let a worker never answer; two seconds are allowed."""
    return goes_on(trial, "hang", "--task-timeout", "2")


def fail(trial: Trial) -> Row:
    """Raise in the user's own code: the run ends and says what it was; mended, it goes on."""
    (trial.plan / "misdeed").write_text("raise", encoding="utf-8")
    command = trial.prune(*WORKERS)
    ended = command.finish()
    clear = ended.code in (1, 2) and "ZeroDivisionError" in ended.err
    (trial.plan / "misdeed").unlink()
    return trial.resumed(ended, survived=clear and command.leaves_nobody())


def poison(trial: Trial) -> Row:
    """Let a candidate kill every worker that scores it: it is left out, and the run says so.

    It is the worst one, so that the search without it comes to the same.
    """
    for more in (("--generations", "0"), ()):
        trial.prune(*WORKERS, *more, "--overwrite").finish()
        if more:
            seeds = {found for _, _, found in _calls(trial)}
    calls = [call for call in _calls(trial) if call[2] not in seeds]
    least = min(rows for rows, _, _ in calls)
    times = Counter(found for _, _, found in calls)
    worst = min(call for call in calls if call[0] == least and times[call[2]] == 1)
    (trial.plan / "misdeed").write_text("exit", encoding="utf-8")
    (trial.plan / "poison").write_text(worst[2], encoding="utf-8")
    command = trial.prune(*WORKERS, "--overwrite")
    before = command.read_until("is replaced") and time.monotonic()
    command.read_until(" 3 times")
    seconds = time.monotonic() - before if before else None
    ended = command.finish()
    said = re.search(r"generation \d+: .* 3 times", ended.err)
    return trial.row(ended, seconds, survived=said is not None)


def _calls(trial: Trial) -> list[tuple[int, float, str]]:
    found = []
    for file in (trial.plan / "calls").iterdir():
        for line in file.read_text(encoding="utf-8").splitlines():
            rows, value, key = line.split()
            found.append((int(rows), float(value), key))
    return found


def kill_all(trial: Trial) -> Row:
    """Kill every worker at once: others take their places."""
    command = trial.prune(*WORKERS)
    command.wait_for("generation 3/")
    for actor in command.actors():
        os.kill(actor, signal.SIGKILL)
    started = time.monotonic()
    command.read_until("is replaced")
    command.read_until("generation ")
    seconds = time.monotonic() - started
    return trial.row(command.finish(), seconds, survived=command.leaves_nobody())


def kill_all_for_good(trial: Trial) -> Row:
    """Kill every worker where none can start again: the run ends, and goes on later."""
    command = trial.prune(*WORKERS)
    command.wait_for("generation 3/")
    (trial.plan / "locked").touch()
    for actor in command.actors():
        os.kill(actor, signal.SIGKILL)
    ended = command.finish()
    clear = ended.code == 1 and "all 2 are lost" in ended.err and "gaprune resume run" in ended.err
    (trial.plan / "locked").unlink()
    return trial.resumed(ended, *WORKERS, survived=clear and command.leaves_nobody())


def start_nobody(trial: Trial) -> Row:
    """Let no worker start: the run ends at once and says why; mended, it goes on."""
    (trial.plan / "locked").touch()
    command = trial.prune(*WORKERS)
    ended = command.finish()
    clear = ended.code == 1 and "the network's file is locked" in ended.err
    (trial.plan / "locked").unlink()
    return trial.resumed(ended, *WORKERS, survived=clear and command.leaves_nobody())


def lose_node(trial: Trial) -> Row:
    """Take away the node, one of two, that two of three workers are on."""
    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        second = cluster.add_node(num_cpus=2)
        command = trial.prune("--ray-address", cluster.address, "--workers", "3")
        command.wait_for("generation 3/")
        started = time.monotonic()
        threading.Thread(
            target=cluster.remove_node, args=(second,), kwargs={"allow_graceful": False}
        ).start()
        command.read_until("a worker was lost")
        command.read_until("generation ")
        seconds = time.monotonic() - started
        ended = command.finish()
        return trial.row(ended, seconds, survived="a worker was lost" in ended.err)
    finally:
        cluster.shutdown()
