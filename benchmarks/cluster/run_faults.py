"""Faults of the driver process and its disk, and wrong use of a run directory."""

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

from benchmarks.cluster.fault_case import PRUNE, FaultCase, Row, newest
from benchmarks.cluster.faulty_network import Network
from benchmarks.cluster.killed_runs import ResumedRun

WORKERS = ("--workers", "2")
MIN_CALLS = 20  # a checkpoint makes more system calls than this


def interrupt(case: FaultCase) -> Row:
    """Press Ctrl-C."""
    return stop(case, signal.SIGINT)


def terminate(case: FaultCase) -> Row:
    """Send SIGTERM to the process."""
    return stop(case, signal.SIGTERM)


def stop(case: FaultCase, number: signal.Signals) -> Row:
    """Send a signal: exit code 128 + number, a checkpoint, a partial result, no orphans."""
    command = case.prune(*WORKERS)
    command.wait_for("generation 3/")
    command.process.send_signal(number)
    ended = command.finish()
    clear = ended.code == 128 + number and (case.run / "result.json").exists()
    return case.resumed(ended, *WORKERS, survived=clear and command.leaves_no_process())


def kill(case: FaultCase) -> Row:
    """Kill the process while it writes a checkpoint, at each of its system calls."""
    before = case.folder / "before"
    before.mkdir()
    shutil.copy(case.folder / "net.safetensors", before)
    script = "benchmarks.cluster.killed_runs"
    ended = case.start(str(before), *PRUNE, module=script).finish()
    runs = [ResumedRun(**run) for run in json.loads(ended.out)]
    right = [replace(case, folder=Path(run.folder)).is_right() for run in runs]
    return Row(
        len(right) > MIN_CALLS and all(right),
        max(run.saved - run.resumed for run in runs),
        max(run.seconds for run in runs),
        f"each of {len(right)} calls; torch was loaded before",
    )


def fill_disk(case: FaultCase) -> Row:
    """Fill the disk after the second generation; free it and resume."""
    with small_disk(case.folder / "disk") as disk:
        if disk is None:
            return Row(None, None, None, "not tried: a small file system cannot be mounted here")
        on_disk = replace(case, folder=disk)
        shutil.copy(case.folder / "net.safetensors", disk)
        command = on_disk.prune()
        command.wait_for("generation 2/")
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1024))
        ended = command.finish()
        clear = ended.code == 1 and "No space left" in ended.err
        ballast.unlink()
        return on_disk.resumed(ended, survived=clear and "gaprune resume run" in ended.err)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """Mount a file system of one megabyte; yield None where that is not permitted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)  # noqa: S603 - a fixed command
    except (OSError, subprocess.CalledProcessError):
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)  # noqa: S603, S607 - as above


def flip_bit(case: FaultCase) -> Row:
    """Flip a bit in the newest checkpoint of a killed run: the previous one is used."""
    command = case.prune()
    command.wait_for("generation 5/")
    command.process.kill()
    ended = command.finish()
    latest = max(case.run.glob("checkpoint/0*"))
    file = latest / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    return case.resumed(ended, survived=True, message="checkpoint: ")


def other_model(case: FaultCase) -> Row:
    """Resume with other weights: refused without changes; the right ones are accepted."""
    command = case.prune()
    command.wait_for("generation 3/")
    command.process.kill()
    ended = command.finish()
    weights = case.folder / "net.safetensors"
    right, saved = weights.read_bytes(), newest(case.run / "checkpoint")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        save_file(Network().state_dict(), weights)
    refused = case.start("resume", "run").finish()
    weights.write_bytes(right)
    clear = refused.code == 2 and "weights: " in refused.err
    return case.resumed(ended, survived=clear and saved == newest(case.run / "checkpoint"))


def run_twice(case: FaultCase) -> Row:
    """Start a second run and a resume in the folder of a running one: both are refused."""
    first = case.prune()
    first.wait_for("generation 1/")
    started = time.monotonic()
    first.process.send_signal(signal.SIGSTOP)
    others = [case.prune("--overwrite"), case.start("resume", "run")]
    refused = [other.finish() for other in others]
    first.process.send_signal(signal.SIGCONT)
    owner = f"process {first.process.pid}"
    clear = all(result.code == 2 and owner in result.err for result in refused)
    first.read_until("generation ")
    return case.row(first.finish(), time.monotonic() - started, survived=clear)


def no_home(case: FaultCase) -> Row:
    """Run with a HOME that cannot be written."""
    (case.folder / "file").touch()
    env = {"HOME": str(case.folder / "file" / "home"), "GAPRUNE_CACHE": "", "XDG_CACHE_HOME": ""}
    ended = case.prune(*WORKERS, env=env).finish()
    return case.row(ended, 0.0, survived=True)
