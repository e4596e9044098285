"""Resume a run: same network, same settings, same versions, or not at all.

A resumed run gives bit for bit the masks of an uninterrupted one, also with another number of
workers. Settings that decide about the masks cannot be changed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from textwrap import shorten
from typing import Any

from torch import nn

from gaprune.callbacks import Observer, ObserverGroup, WarnOnce
from gaprune.config import ARITHMETIC, CHANGEABLE, LIMITS, Settings, make_settings, unknown_setting
from gaprune.errors import GapruneError, InputError
from gaprune.evaluation.labelled import read_test
from gaprune.io.atomic import writing
from gaprune.io.checkpoints import Checkpoint, DamagedError, read_checkpoint
from gaprune.io.run_files import CONFIG, RECORD, check_run_files, read_config, read_record
from gaprune.io.trusted_code import check_code
from gaprune.models.forward import standard_torch
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import target_from_module
from gaprune.profiling import run_profiler
from gaprune.runs.checkpointer import FORMAT, START, VERSIONS, fingerprint
from gaprune.runs.directory import config_text
from gaprune.runs.job import PruneJob, make_job
from gaprune.runs.live_networks import live_network
from gaprune.runs.open_directory import OpenRun, reopen_run
from gaprune.runs.prune import prepare_run
from gaprune.runs.python_display import python_display
from gaprune.runs.result import Result
from gaprune.runs.setup import CheckedSettings, check_settings

_DIFFERENCES = {
    "weights_sha256": "weights: they are not those of the run",
    "network": "model: the network is not built as in the run",
    "layers": "prune_also: the prunable layers are not those of the run",
    "inputs": "input: the network's input is not that of the run",
}


@standard_torch()
def resume(  # noqa: PLR0913 # options, each by its own name
    path: str | Path,
    *,
    model: nn.Module | None = None,
    test: object = None,
    example_inputs: object = None,
    observer: Observer | None = None,
    progress: bool = True,
    profile: bool = False,
    trust_code: bool = False,
    **changes: Any,
) -> Result:
    """Continue a run that was stopped, however it was, and save its result in its folder.

    Args:
        path: the run directory: of `gaprune prune`, or of `gaprune.prune(…, out=path)`.
        model: the network, if the run pruned one in memory that is there no longer; else the run
            knows where it is from.
        test: labelled data for the final accuracy of a network in memory; see `gaprune.prune`.
        example_inputs: those of the run, for a network in memory with several inputs.
        observer: told of progress.
        progress: whether to show a progress bar on stderr.
        profile: measure where the time goes from here on (`result.profile`).
        trust_code: whether code that the run directory names may run, if this user's gaprune did
            not write that directory on this machine, or the code has changed since.
        changes: settings that may differ (`CHANGEABLE`). Workers and their place change no mask.
            With other limits a finished run continues: a preset without gradient steps then finds
            what a longer run would have found; learning rates were planned for the first limit, so
            with gradient steps it finds other masks. Other threads or GPUs may change last bits.

    Returns:
        The result of the whole run; of a finished run, the same result again.

    Raises:
        InputError: the network, a setting or the version of gaprune or torch is not that of the
            run; there is no such run, or it is running.
        GapruneError: the checkpoints are damaged.
    """
    with reopen_run(path) as run_directory:
        with (
            python_display(progress=progress) as display,
            run_profiler(enabled=profile) as profiler,
        ):
            result, job = resume_run(
                run_directory,
                changes,
                ObserverGroup(display, observer or Observer()),
                model,
                test,
                example_inputs=example_inputs,
                trust_code=trust_code,
            )
        result = result.timed(profiler)
        run_directory.save(result, job)
    return result


def resume_run(  # noqa: PLR0913 # see resume
    run_directory: OpenRun,
    changes: Mapping[str, Any],
    observer: Observer,
    model: nn.Module | None = None,
    test: object = None,
    *,
    example_inputs: object = None,
    trust_code: bool = False,
) -> tuple[Result, PruneJob | None]:
    """Return the result of a run that was opened again, and what was asked for; see `resume`."""
    started, start = time.monotonic(), _read_start(run_directory)
    observer = WarnOnce.of(observer)
    facts = start.facts
    folder = run_directory.folder
    if (folder / RECORD).is_file():  # a finished run; its limits in config.toml may be edited
        check_run_files(folder, read_record(folder))
    stated = read_config(folder / CONFIG)
    checked = _resumed_settings(run_directory, facts["settings"], stated, changes)
    settings, job = checked.settings, None
    used = settings.model_dump(mode="json")
    if model is None and "target" not in stated:
        model = live_network(folder)
    code = {**stated, **used}  # `used` comes from the checkpoint, which is a file too
    if model is not None:
        code.pop("target", None)
    check_code(code, run_directory.folder / CONFIG, trust_code=trust_code)
    if model is not None:
        target = target_from_module(
            model,
            inputs=_input_options(facts["inputs"]),
            prune_also=stated.get("prune_also", ()),
            ignore=stated.get("ignore", ()),
            fold_parametrizations=bool(stated.get("fold_parametrizations")),
            example_inputs=example_inputs,
            device=checked.driver_device,
            output=stated.get("output"),
        )
        samples = None if test is None else read_test(test, target)
    elif "target" in stated:
        # `device` is the one chosen now: that of the first process may not exist here.
        job = make_job({**stated, **{name: v for name, v in used.items() if v is not None}})
        target, samples = job.load()
    else:
        raise InputError(
            f"model: {run_directory.path} pruned a network in memory; pass it to gaprune.resume"
            f"({str(run_directory.path)!r}, model=…)"
        )
    here = json.loads(json.dumps(fingerprint(target)))
    for name, text in _DIFFERENCES.items():
        if here[name] != facts[name]:
            now, then = (
                shorten(str(value), 80, placeholder="…") for value in (here[name], facts[name])
            )
            raise InputError(
                f"{text}: {now} here, {then} in {run_directory.path}; name the same network and "
                "weights, or start a new run"
            )
    for text in _changes_of_masks(checked, facts["settings"]):
        observer.warning(text)
    with writing(run_directory.path, GapruneError):
        run_directory.write_config(config_text(target, used, job))
    run = prepare_run(
        target,
        checked,
        test=samples,
        observer=observer,
        run_directory=run_directory,
        job=job,
        start=start,
        started=started,
    )
    return run.run(), job


def _read_start(run_directory: OpenRun) -> Checkpoint:
    """Read the first checkpoint; raise if there is none, it is damaged or of another version."""
    path, again = run_directory.checkpoint / START, "start the run again"
    if not path.is_dir():
        raise InputError(f"run: {run_directory.path} was stopped before its checkpoint; {again}")
    try:
        start = read_checkpoint(path)
    except DamagedError as error:
        raise GapruneError(
            f"checkpoint: the calibration inputs are damaged ({error}); {again}"
        ) from error
    versions = start.facts["versions"]
    if start.facts["format"] != FORMAT:
        raise InputError(
            f"run: {run_directory.path} was written by gaprune {versions['gaprune']}, whose "
            f"checkpoints this version cannot read; install gaprune {versions['gaprune']} to "
            f"resume it, or {again}"
        )
    for name in VERSIONS:
        first, here = versions.get(name), metadata.version(name)
        if first != here:
            raise InputError(
                f"run: {run_directory.path} began with {name} {first}, and this is {name} {here}, "
                f"which may give other masks; install {name} {first}, or {again}"
            )
    return start


def _resumed_settings(
    run_directory: OpenRun,
    first: Mapping[str, Any],
    stated: Mapping[str, Any],
    changes: Mapping[str, Any],
) -> CheckedSettings:
    """Return the settings with changes, from an edited `config.toml` or the caller, if allowed."""
    written = {name: value for name, value in stated.items() if name in Settings.model_fields}
    edited = make_settings(written).model_dump(mode="json")
    differing = {name: value for name, value in edited.items() if value != first.get(name)}
    for name, value in {**differing, **changes}.items():
        if name not in Settings.model_fields:
            raise unknown_setting("setting", name, CHANGEABLE)
        if name not in CHANGEABLE:
            raise InputError(
                f"{name}: {run_directory.path} began with {first.get(name)!r}, and {value!r} would "
                f"give other masks; leave it as it is ({CONFIG}), or start a new run"
            )
    settings = make_settings({**first, **differing, **changes})
    for name in LIMITS if settings.max_drop is not None else ():
        if getattr(settings, name) != first.get(name):
            raise InputError(
                f"{name}: all searches of a run with max_drop have the same limits, "
                f"{first.get(name)!r} here; leave it out, or start a new run"
            )
    checked = check_settings(settings)
    settings = settings.model_copy(update={"device": checked.worker_options.device})
    return replace(checked, settings=settings)


def _changes_of_masks(checked: CheckedSettings, first: Mapping[str, Any]) -> Iterator[str]:
    """Yield why the masks will not be those of an uninterrupted run."""
    settings = checked.settings
    for name in ARITHMETIC:
        if getattr(settings, name) != first.get(name):
            yield (
                f"{name}: {getattr(settings, name)} instead of {first.get(name)} may change the "
                "last bits of sums, and so the masks"
            )
    if checked.preset.gradient and settings.generations != first["generations"]:
        yield (
            f"generations: learning rates were planned for {first['generations']}; with "
            f"{settings.generations} the masks are not those of a run that was started with it"
        )


def _input_options(inputs: Mapping[str, Any]) -> InputOptions:
    """Return the inputs of a network in memory as the user stated them."""
    stated: dict[str, Any] = {}
    if inputs["kind"] == "tokens":
        stated = {"vocabulary": inputs["vocabulary"]}
    elif not inputs["assumed"]:
        stated = {"mean": tuple(inputs["mean"]), "std": tuple(inputs["std"])}
        if stated == {"mean": (0.0,), "std": (1.0,)}:
            stated = {"range": (inputs["low"], inputs["high"])}
    return InputOptions(tuple(inputs["shape"]), kind=inputs["kind"], **stated)
