"""A run goes on where it stopped: same network, same settings, same versions, or not at all.

Going on is bit-identical: a run that was stopped once, or many times, finds what it would have
found undisturbed, also with another number of workers. What decides about that cannot be changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gaprune.calibration.samples import Samples
from gaprune.callbacks import Observer
from gaprune.config import NEUTRAL, Settings, make_settings, read_config
from gaprune.errors import GapruneError, InputError
from gaprune.evolution.presets import find_preset
from gaprune.io.atomic import write_file, writing
from gaprune.io.checkpoints import Checkpoint, DamagedError, read_checkpoint
from gaprune.io.run_files import CONFIG
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, target_from_module
from gaprune.profiling import run_profiler
from gaprune.runs.checkpointer import START, FolderCheckpointer, identity, versions
from gaprune.runs.directory import config_text
from gaprune.runs.job import PruneJob, make_job
from gaprune.runs.open_directory import OpenRun, reopen_run
from gaprune.runs.prune import run_pruning
from gaprune.runs.result import Result
from gaprune.workers import WorkerOptions, choose_device, choose_driver_device

LIMITS = ("generations", "evaluations", "seconds", "stagnation", "patience")
ARITHMETIC = ("threads_per_worker", "gpus_per_worker", "device")
"""Settings that decide about order and place of floating-point sums."""
CHANGEABLE = (*NEUTRAL, *ARITHMETIC, *LIMITS)
_SAID = {
    "weights_sha256": "weights: they are not those that the run began with",
    "network": "model: the network is not built as it was when the run began",
    "layers": "prune_also: the layers to be pruned are not those that the run began with",
    "inputs": "input: the network's input is not what it was when the run began",
}


@torch.inference_mode(mode=False)  # whatever the caller has switched off
@torch.enable_grad()
def resume(
    path: str | Path,
    *,
    model: nn.Module | None = None,
    test: tuple[Tensor, Tensor] | None = None,
    observer: Observer | None = None,
    profile: bool = False,
    **changes: Any,
) -> Result:
    """Go on with a run that was stopped, by whatever, and save its result in its folder.

    Args:
        path: the run directory: of `gaprune prune`, or of `gaprune.prune(…, out=path)`.
        model: the network, where the run pruned one in memory; else the run knows where it is from.
        test: labelled inputs for the final accuracy, with `model`.
        observer: told of progress.
        profile: measure where the time goes from here on (`result.profile`).
        changes: settings that may differ (`CHANGEABLE`). Workers and where they run change nothing
            that is found. Other limits let a finished run go on: with a preset without gradient
            steps it then finds what a longer run would have found; step lengths were planned for
            the first limit, so with gradient steps it finds something else. Other threads or GPUs
            may change last bits.

    Returns:
        The result of the whole run. Of a run that had ended, the same result again.

    Raises:
        InputError: the network, a setting or the version of gaprune or torch is not that of the
            run; there is no such run, or it is running.
        GapruneError: what was kept is damaged.
    """
    with reopen_run(path) as run_directory:
        given = None if test is None else Samples(*test, "test data given by the caller")
        with run_profiler(enabled=profile) as profiler:
            result, job = go_on(run_directory, changes, observer or Observer(), model, given)
        result = result.timed(profiler)
        run_directory.save(result, job)
    return result


def go_on(
    run_directory: OpenRun,
    changes: Mapping[str, Any],
    observer: Observer,
    model: nn.Module | None = None,
    test: Samples | None = None,
) -> tuple[Result, PruneJob | None]:
    """Return the result of a run that was claimed again, and what it was asked; see `resume`."""
    start = _read_start(run_directory)
    facts = start.facts
    stated = read_config(run_directory.folder / CONFIG)
    settings = _settings(run_directory, facts["settings"], stated, changes)
    job = None
    if model is not None:
        target = target_from_module(
            model,
            inputs=_as_options(facts["inputs"]),
            prune_also=facts["layers"],
            device=choose_driver_device(WorkerOptions.from_settings(settings)),
        )
    elif "target" in stated:
        used = settings.model_dump(mode="json")  # the device of `stated` may not be here
        job = make_job({**stated, **{name: v for name, v in used.items() if v is not None}})
        target, test = job.load()
    else:
        raise InputError(
            f"model: {run_directory.path} pruned a network in memory; pass it to gaprune.resume"
            f"({str(run_directory.path)!r}, model=…)"
        )
    _check_network(run_directory, facts, target)
    _tell(settings, facts["settings"], observer)
    used = settings.model_dump(mode="json")
    with writing(run_directory.path, GapruneError):
        write_file(run_directory.folder / CONFIG, config_text(target, used, job))
    checkpointer = FolderCheckpointer(
        run_directory, settings.checkpoint_every, observer, job, start
    )
    return run_pruning(target, settings, test, observer, checkpointer), job


def _read_start(run_directory: OpenRun) -> Checkpoint:
    """Read what the run began with.

    Raises:
        InputError: it is of another version, or was stopped before there was anything.
        GapruneError: it is damaged.
    """
    again = "start the run again"
    if not (run_directory.checkpoint / START).is_dir():
        raise InputError(f"run: {run_directory.path} was stopped before anything was kept; {again}")
    try:
        start = read_checkpoint(run_directory.checkpoint / START)
    except DamagedError as error:
        raise GapruneError(
            f"checkpoint: the calibration inputs are damaged ({error}); {again}"
        ) from error
    for name, here in versions().items():
        then = start.facts["versions"].get(name)
        if then != here:
            raise InputError(
                f"run: {run_directory.path} began with {name} {then}, and this is {name} {here}, which may "
                f"give other masks; install {name} {then}, or {again}"
            )
    return start


def _settings(
    run_directory: OpenRun,
    kept: Mapping[str, Any],
    stated: Mapping[str, Any],
    changes: Mapping[str, Any],
) -> Settings:
    """Return the settings to go on with.

    Raises:
        InputError: one that decides about what is found is not what it was.
    """
    written = {name: value for name, value in stated.items() if name in Settings.model_fields}
    edited = make_settings(written).model_dump(mode="json")
    differing = [name for name, value in edited.items() if value != kept.get(name)]
    for name in [*changes, *differing]:
        if name in CHANGEABLE:
            continue
        came = changes[name] if name in changes else edited[name]
        raise InputError(
            f"{name}: {run_directory.path} began with {kept.get(name)!r}, and {came!r} would find other "
            f"masks; leave it as it is ({CONFIG}), or start a new run"
        )
    settings = make_settings({**kept, **{name: edited[name] for name in differing}, **changes})
    settings = settings.replace(
        device=choose_device(WorkerOptions.from_settings(settings))
    )  # `auto` decided here
    for name in LIMITS:
        if settings.max_drop is not None and getattr(settings, name) != kept.get(name):
            raise InputError(
                f"{name}: the searches of a run with max_drop have the same limits, "
                f"{kept.get(name)!r} here; leave it out, or start a new run"
            )
    return settings


def _check_network(run_directory: OpenRun, facts: Mapping[str, Any], target: Target) -> None:
    here = json.loads(json.dumps(identity(target)))
    for name, said in _SAID.items():
        if here[name] != facts[name]:
            raise InputError(
                f"{said}: {_short(here[name])} here, {_short(facts[name])} in {run_directory.path}; "
                "name the same network and weights, or start a new run"
            )


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _tell(settings: Settings, kept: Mapping[str, Any], observer: Observer) -> None:
    """Warn where the result will not be that of an undisturbed run."""
    for name in ARITHMETIC:
        if getattr(settings, name) != kept.get(name):
            observer.warning(
                f"{name}: {getattr(settings, name)} instead of {kept.get(name)} may change the "
                "last bits of sums, and so the masks that are found"
            )
    gradients = find_preset(settings.preset).gradient
    if gradients and settings.generations != kept["generations"]:
        observer.warning(
            f"generations: the gradient steps so far were planned for {kept['generations']}; with "
            f"{settings.generations} the masks are not those of a run that was started with "
            f"{settings.generations}"
        )


def _as_options(inputs: Mapping[str, Any]) -> InputOptions:
    """State about a network in memory what was known about it."""
    shape = tuple(inputs["shape"])
    if inputs["kind"] == "tokens":
        return InputOptions(shape, kind="tokens", vocabulary=inputs["vocabulary"])
    if inputs["assumed"]:
        return InputOptions(shape, kind=inputs["kind"])
    mean, std = tuple(inputs["mean"]), tuple(inputs["std"])
    if (mean, std) != ((0.0,), (1.0,)):
        return InputOptions(shape, kind=inputs["kind"], mean=mean, std=std)
    return InputOptions(shape, kind=inputs["kind"], range=(inputs["low"], inputs["high"]))
