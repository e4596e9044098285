"""Does gaprune work on this machine? Each check says what was found and the way out."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gaprune import plugins, workers
from gaprune.calibration.generators.procedural import GENERATORS
from gaprune.criteria import CRITERIA, read_criterion
from gaprune.errors import InputError
from gaprune.evaluation.objectives import OBJECTIVES, agreement, read_objective
from gaprune.evolution.operators import CROSSOVERS, MUTATIONS
from gaprune.evolution.presets import PRESETS, read_preset
from gaprune.export.format_registry import EXPORTERS, Exporter
from gaprune.masks.supermask import top_k_mask
from gaprune.models.input_spec import KINDS
from gaprune.models.target import load_target
from gaprune.models.zoo import ZOO, mnist
from gaprune.runs.open_directory import open_run
from gaprune.workers.serial import torch_threads

OK, WARN, FAIL = "ok", "warn", "fail"
OLDEST_TORCH = (2, 10)  # older ones execute code from weight files: CVE-2025-32434, CVE-2026-24747
SCORES = 1_200_000
MASKING_LIMIT = 0.005  # seconds to mask them on one core
LEAST_MEMORY = 2.0  # GiB
MNIST_SHA256 = {
    mnist.TRAIN_IMAGES: "0b367032e93c5d0cea0925647cfdb18614af8ee15f83e6f2fc2ad904a6835971",
    mnist.TRAIN_LABELS: "1787548bbe0bff1ec2ecdc0ef292b02df999e2d1a6002d27500982c652b17203",
    mnist.TEST_IMAGES: "1a1a05eab793c14bb050b398624a11b0ffd1a2953baed553b1b9bd079e2a20be",
    mnist.TEST_LABELS: "b91679a0acfe4ba0e50a2437a903084cba1f5f92592b016a25a7dfd00455798b",
}
REINSTALL = "reinstall gaprune: a carried file is damaged or missing"


@dataclass(frozen=True)
class Check:
    """One line of the examination.

    Attributes:
        name: what was looked at.
        status: `OK`, `WARN` (works, but) or `FAIL`.
        found: what was found, in words.
        way_out: what to do about it; empty where all is well.
    """

    name: str
    status: str
    found: str
    way_out: str = ""


Remedied = tuple[Callable[[], Check], str]  # a check, and the way out where it raises


def examine(checks: Mapping[str, Remedied]) -> Iterator[Check]:
    """Make one check after the other; one that raises has failed, and its way out is shown."""
    for name, (check, way_out) in checks.items():
        try:
            yield check()
        except Exception as error:  # noqa: BLE001 - whatever is broken is what is looked for
            yield Check(name, FAIL, f"{type(error).__name__}: {error}", way_out)


def check_python() -> Check:
    """Which Python runs."""
    return Check("python", OK, f"{platform.python_version()} on {platform.platform(terse=True)}")


def check_torch() -> Check:
    """Whether torch is safe with weight files, and how many threads it uses."""
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    found = f"{torch.__version__}, {torch.get_num_threads()} threads"
    if release < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        return Check("torch", FAIL, found, f"pip install 'torch>={oldest}' (CVE-2026-24747)")
    return Check("torch", OK, found)


def check_device() -> Check:
    """Whether there is a GPU that answers."""
    if not torch.cuda.is_available():
        return Check("device", OK, "CPU; GPU path not available (torch sees no CUDA device)")
    torch.ones(8, device="cuda").sum().item()
    return Check("device", OK, f"CPU, and {torch.cuda.get_device_name()}")


def check_ray() -> Check:
    """Start Ray, run a task on a real actor, stop Ray."""
    started = time.monotonic()
    with workers.RayWorkers("here", workers.WorkerOptions()) as actor:
        (answer,) = actor.run([_Ping()])
    if answer != "here":
        return Check("ray", FAIL, f"the actor answered {answer!r}", "use --workers 1")
    return Check(
        "ray", OK, f"started, ran a task and stopped in {time.monotonic() - started:.1f} s"
    )


@dataclass(frozen=True)
class _Ping:
    def run(self, evaluator: str) -> str:
        return evaluator


def check_files(files: dict[Path, str]) -> Check:
    """Whether files have the SHA-256 they should have."""
    for path, wanted in files.items():
        if hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
            return Check("mnist", FAIL, f"{path.name} has another checksum", REINSTALL)
    return Check("mnist", OK, f"{len(files)} files, checksums right")


def check_zoo() -> Check:
    """Whether every reference network loads and answers."""
    for name in ZOO:
        load_target(name)
    return Check("zoo", OK, f"{', '.join(ZOO)} load and answer")


def check_machine() -> Check:
    """Cores that this process may use, and free memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    found = f"{cores} cores, {free:.1f} GiB of memory free"
    if free < LEAST_MEMORY:
        return Check("machine", WARN, found, "use --workers 1; close what needs memory")
    return Check("machine", OK, found)


def check_masking() -> Check:
    """How long exact top-k of a network of 1.2 M weights takes: the best of several tries."""
    scores = torch.rand(SCORES, generator=torch.Generator().manual_seed(0))
    times = []
    with torch_threads(1):
        for _ in range(7):
            started = time.perf_counter()
            top_k_mask(scores, SCORES // 50)
            times.append(time.perf_counter() - started)
    found = f"{SCORES / 1e6:.1f} M scores masked in {1000 * min(times):.1f} ms on one core"
    if min(times) > MASKING_LIMIT:
        return Check("masking", WARN, found, "slower than usual: is the machine busy?")
    return Check("masking", OK, found)


def check_folder() -> Check:
    """Whether results can be saved below the current folder."""
    with open_run(Path("runs") / "trial"):
        pass
    return Check("folder", OK, "results can be saved in runs/")


_GROUPS: dict[str, tuple[Iterable[str], Callable[[plugins.Plugin, Any], object]]] = {
    plugins.CRITERIA: (CRITERIA, read_criterion),
    plugins.OBJECTIVES: (OBJECTIVES, partial(read_objective, agreement)),
    plugins.MUTATIONS: (MUTATIONS, plugins.require_function),
    plugins.CROSSOVERS: (CROSSOVERS, plugins.require_function),
    plugins.PRESETS: (PRESETS, read_preset),
    plugins.EXPORTERS: (EXPORTERS, plugins.require_type(Exporter)),
    **{plugins.GENERATORS + kind: (GENERATORS[kind], plugins.require_function) for kind in KINDS},
}
"""Group of plug-ins → our own names there, and what reads what an entry point holds."""


def check_plugins() -> Check:
    """Which plug-ins are installed, and whether each can be imported and is what it should be."""
    found = plugins.installed_plugins()
    broken = [trouble for one in found if (trouble := _trouble(one))]
    if broken:
        return Check("plug-ins", WARN, "; ".join(broken), "they are left out; uninstall them")
    return Check("plug-ins", OK, ", ".join(one.name for one in found) or "none installed")


def _trouble(plugin: plugins.Plugin) -> str | None:
    """Say what is wrong with a plug-in, or return None."""
    if plugin.group not in _GROUPS:
        known = ", ".join(_GROUPS)
        return f"{plugin.title}: there is no group {plugin.group!r}; there are {known}"
    own, read = _GROUPS[plugin.group]
    try:
        plugins.check_name(plugin, list(own))
        read(plugin, plugins.load_plugin(plugin))
    except InputError as error:
        return str(error)
    return None


CHECKS: dict[str, Remedied] = {
    "python": (check_python, "install Python 3.11 or newer"),
    "torch": (check_torch, "install torch again"),
    "device": (check_device, "check the GPU's driver; CUDA_VISIBLE_DEVICES= hides the GPU"),
    "machine": (check_machine, "this system does not tell its memory; nothing to do"),
    "mnist": (partial(check_files, MNIST_SHA256), REINSTALL),
    "zoo": (check_zoo, REINSTALL),
    "plug-ins": (check_plugins, "uninstall the package that the message names"),
    "masking": (check_masking, "install torch and numpy again"),
    "folder": (check_folder, "change to a folder that you may write to, or name one with --out"),
    "ray": (check_ray, "use --workers 1, which does not need Ray, or install ray again"),
}
"""Name → the check with its way out."""
