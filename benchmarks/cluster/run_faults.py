"""Faults of the process that searches, of its disk, and of those who start it."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.cluster.faulty_network import Network
from benchmarks.cluster.killed_runs import Resumed
from benchmarks.cluster.trial import PRUNE, Row, Trial, newest

WORKERS = ("--workers", "2")
MOST_CALLS = 20  # more than that are made for a checkpoint


def interrupt(trial: Trial) -> Row:
    """Press Ctrl-C."""
    return stop(trial, signal.SIGINT)


def terminate(trial: Trial) -> Row:
    """Send SIGTERM to the process."""
    return stop(trial, signal.SIGTERM)


def stop(trial: Trial, number: signal.Signals) -> Row:
    """Send a signal: exit code 128 + its number, a checkpoint, a result so far, no orphan."""
    command = trial.prune(*WORKERS)
    command.wait_for("generation 3/")
    command.process.send_signal(number)
    ended = command.finish()
    clear = ended.code == 128 + number and (trial.run / "result.json").exists()
    return trial.resumed(ended, *WORKERS, survived=clear and command.leaves_nobody())


def kill(trial: Trial) -> Row:
    """Kill the process in the middle of a checkpoint, at each of its calls to the system."""
    before = trial.place / "before"
    before.mkdir()
    shutil.copy(trial.place / "net.safetensors", before)
    script = "benchmarks.cluster.killed_runs"
    ended = trial.start(str(before), *PRUNE, module=script).finish()
    resumed = [Resumed(**one) for one in json.loads(ended.out)]
    right = [replace(trial, place=Path(one.place)).is_right() for one in resumed]
    return Row(
        len(right) > MOST_CALLS and all(right),
        max(one.kept - one.begins for one in resumed),
        max(one.seconds for one in resumed),
        f"each of {len(right)} calls; a process that has loaded torch before",
    )


def fill_disk(trial: Trial) -> Row:
    """Fill the disk from the second generation on; with room again the run goes on."""
    with small_disk(trial.place / "disk") as disk:
        if disk is None:
            return Row(None, None, None, "not tried: a small file system cannot be mounted here")
        there = replace(trial, place=disk)
        shutil.copy(trial.place / "net.safetensors", disk)
        command = there.prune()
        command.wait_for("generation 2/")
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1024))
        ended = command.finish()
        clear = ended.code == 1 and "No space left" in ended.err
        ballast.unlink()
        return there.resumed(ended, survived=clear and "gaprune resume run" in ended.err)


@contextmanager
def small_disk(place: Path) -> Iterator[Path | None]:
    """Mount a file system of a megabyte; None where that is not allowed."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)]
    try:
        subprocess.run(mount, check=True, capture_output=True)  # noqa: S603 - a fixed command
    except (OSError, subprocess.CalledProcessError):
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)  # noqa: S603, S607 - as above


def flip_bit(trial: Trial) -> Row:
    """Flip a bit in the newest checkpoint of a run that was killed: the one before is used."""
    command = trial.prune()
    command.wait_for("generation 5/")
    command.process.kill()
    ended = command.finish()
    latest = max(trial.run.glob("checkpoint/0*"))
    file = latest / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    return trial.resumed(ended, survived=True, said="checkpoint: ")


def other_model(trial: Trial) -> Row:
    """Go on with other weights: refused, nothing changes; with the right ones it goes on."""
    command = trial.prune()
    command.wait_for("generation 3/")
    command.process.kill()
    ended = command.finish()
    weights = trial.place / "net.safetensors"
    right, kept = weights.read_bytes(), newest(trial.run / "checkpoint")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        save_file(Network().state_dict(), weights)
    refused = trial.start("resume", "run").finish()
    weights.write_bytes(right)
    clear = refused.code == 2 and "weights: " in refused.err
    return trial.resumed(ended, survived=clear and kept == newest(trial.run / "checkpoint"))


def run_twice(trial: Trial) -> Row:
    """Start a second run, and a resumption, in the folder of one: refused, the first goes on."""
    first = trial.prune()
    first.wait_for("generation 1/")
    started = time.monotonic()
    first.process.send_signal(signal.SIGSTOP)
    others = [trial.prune("--overwrite"), trial.start("resume", "run")]
    refused = [other.finish() for other in others]
    first.process.send_signal(signal.SIGCONT)
    mine = f"process {first.process.pid}"
    clear = all(one.code == 2 and mine in one.err for one in refused)
    first.read_until("generation ")
    return trial.row(first.finish(), time.monotonic() - started, survived=clear)


def no_home(trial: Trial) -> Row:
    """Let HOME be a place that nobody can write."""
    (trial.place / "file").touch()
    env = {"HOME": str(trial.place / "file" / "home"), "GAPRUNE_CACHE": "", "XDG_CACHE_HOME": ""}
    ended = trial.prune(*WORKERS, env=env).finish()
    return trial.row(ended, 0.0, survived=True)
