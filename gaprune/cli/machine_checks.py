"""Checks that gaprune works on this machine, and how to mend what does not."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from gaprune import plugins
from gaprune.calibration.generators.procedural import GENERATORS
from gaprune.criteria import CRITERIA, read_criterion
from gaprune.errors import InputError
from gaprune.evaluation.objectives import OBJECTIVES, agreement, read_objective
from gaprune.evolution.operators import CROSSOVERS, MUTATIONS
from gaprune.evolution.presets import PRESETS, read_preset
from gaprune.exports.format_registry import EXPORTERS, Exporter
from gaprune.masks.supermask import top_k_mask
from gaprune.models.input_spec import KINDS
from gaprune.models.target import load_target
from gaprune.models.zoo import ZOO, mnist
from gaprune.runs.open_directory import open_run
from gaprune.workers import WorkerOptions
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
REINSTALL = "reinstall gaprune: a bundled file is damaged or missing"


@dataclass(frozen=True)
class Check:
    """The outcome of one check."""

    name: str
    status: str  # OK, WARN (usable, with a limitation) or FAIL
    finding: str
    remedy: str = ""


CheckWithRemedy = tuple[Callable[[], Check], str]  # the remedy is shown if the check raises


def run_checks(checks: Mapping[str, CheckWithRemedy]) -> Iterator[Check]:
    """Run one check after the other; one that raises has failed."""
    for name, (check, remedy) in checks.items():
        try:
            yield check()
        except Exception as error:  # noqa: BLE001 - any failure is a finding
            yield Check(name, FAIL, f"{type(error).__name__}: {error}", remedy)


def check_python() -> Check:
    """Return the version of Python."""
    return Check("python", OK, f"{platform.python_version()} on {platform.platform(terse=True)}")


def check_torch() -> Check:
    """Check that torch reads weight files safely."""
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    finding = f"{torch.__version__}, {torch.get_num_threads()} threads"
    if release < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        return Check("torch", FAIL, finding, f"pip install 'torch>={oldest}' (CVE-2026-24747)")
    return Check("torch", OK, finding)


def check_device() -> Check:
    """Check that a GPU, if there is one, computes."""
    if not torch.cuda.is_available():
        return Check("device", OK, "CPU; no GPU (torch sees no CUDA device)")
    torch.ones(8, device="cuda").sum().item()  # `item` waits: a broken driver raises here
    return Check("device", OK, f"CPU, and {torch.cuda.get_device_name()}")


def check_machine() -> Check:
    """Return the cores that this process may use, and the free memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # memory that the page cache uses is not counted: the result is a lower bound
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    finding = f"{cores} cores, {free:.1f} GiB of memory free"
    if free < LEAST_MEMORY:
        return Check("machine", WARN, finding, "use --workers 1; close other programs")
    return Check("machine", OK, finding)


def check_files(files: Mapping[Path, str]) -> Check:
    """Check the SHA-256 of files."""
    for path, expected in files.items():
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            return Check("mnist", FAIL, f"{path.name} has a wrong checksum", REINSTALL)
    return Check("mnist", OK, f"{len(files)} files with the right checksums")


def check_zoo() -> Check:
    """Check that every bundled network loads and runs."""
    for name in ZOO:
        load_target(name)  # it runs a forward pass
    return Check("zoo", OK, f"{', '.join(ZOO)} load and run")


_PLUGIN_GROUPS: dict[str, tuple[Iterable[str], Callable[[plugins.Plugin, Any], object]]] = {
    plugins.CRITERIA: (CRITERIA, read_criterion),
    plugins.OBJECTIVES: (OBJECTIVES, partial(read_objective, agreement)),
    plugins.MUTATIONS: (MUTATIONS, plugins.require_function),
    plugins.CROSSOVERS: (CROSSOVERS, plugins.require_function),
    plugins.PRESETS: (PRESETS, read_preset),
    plugins.EXPORTERS: (EXPORTERS, plugins.require_type(Exporter)),
    **{plugins.GENERATORS + kind: (GENERATORS[kind], plugins.require_function) for kind in KINDS},
}
"""Group → built-in names, and the function that validates what an entry point holds."""


def check_plugins() -> Check:
    """Check that every installed plug-in can be imported and is valid."""
    installed = plugins.installed_plugins()
    errors = [error for plugin in installed if (error := _plugin_error(plugin))]
    if errors:
        return Check("plug-ins", WARN, "; ".join(errors), "they are ignored; uninstall them")
    return Check("plug-ins", OK, ", ".join(plugin.name for plugin in installed) or "none installed")


def _plugin_error(plugin: plugins.Plugin) -> str | None:
    if plugin.group not in _PLUGIN_GROUPS:
        groups = ", ".join(_PLUGIN_GROUPS)
        return f"{plugin.title}: there is no group {plugin.group!r}; groups: {groups}"
    builtin, read = _PLUGIN_GROUPS[plugin.group]
    try:
        plugins.check_name(plugin, list(builtin))
        read(plugin, plugins.load_plugin(plugin))
    except InputError as error:
        return str(error)
    return None


def check_masking() -> Check:
    """Time exact top-k on a network of 1.2 M weights; the fastest of several times counts."""
    scores = torch.rand(SCORES, generator=torch.Generator().manual_seed(0))
    times = []
    with torch_threads(1):
        for _ in range(7):
            started = time.perf_counter()
            top_k_mask(scores, SCORES // 50)
            times.append(time.perf_counter() - started)  # the first includes memory allocation
    finding = f"{SCORES / 1e6:.1f} M scores masked in {1000 * min(times):.1f} ms on one core"
    if min(times) > MASKING_LIMIT:
        return Check("masking", WARN, finding, "slower than usual: is the machine busy?")
    return Check("masking", OK, finding)


def check_folder() -> Check:
    """Check that results can be saved below the current folder."""
    with open_run(Path("runs") / "trial"):  # removed again, since nothing is saved in it
        pass
    return Check("folder", OK, "results can be saved in runs/")


def check_ray() -> Check:
    """Start Ray, run a task on an actor, and stop Ray."""
    if find_spec("ray") is None:
        remedy = "pip install 'gaprune[ray]' for --workers 2 and more"
        return Check("ray", OK, "not installed; one worker does not need it", remedy)
    from gaprune.workers.ray_pool import RayWorkers  # noqa: PLC0415 - importing Ray takes long

    started = time.monotonic()
    with RayWorkers("here", WorkerOptions()) as actor:
        (answer,) = actor.run([_Ping()])
    if answer != "here":
        return Check("ray", FAIL, f"the actor returned {answer!r}", "use --workers 1")
    seconds = time.monotonic() - started
    return Check("ray", OK, f"started, ran a task and stopped in {seconds:.1f} s")


@dataclass(frozen=True)
class _Ping:
    def run(self, evaluator: str) -> str:
        return evaluator


CHECKS: dict[str, CheckWithRemedy] = {
    "python": (check_python, "install Python 3.11 or newer"),
    "torch": (check_torch, "reinstall torch"),
    "device": (check_device, "check the driver of the GPU; CUDA_VISIBLE_DEVICES= hides the GPU"),
    "machine": (check_machine, "this system does not report its memory; nothing to do"),
    "mnist": (partial(check_files, MNIST_SHA256), REINSTALL),
    "zoo": (check_zoo, REINSTALL),
    "plug-ins": (check_plugins, "uninstall the package that the message names"),
    "masking": (check_masking, "reinstall torch and numpy"),
    "folder": (check_folder, "change to a folder that you may write to, or name one with --out"),
    "ray": (check_ray, "use --workers 1, which does not need Ray, or reinstall ray"),
}
"""Name → the check and its remedy."""
