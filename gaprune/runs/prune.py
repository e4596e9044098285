"""From a network and settings to a result: one run, or as many as a limit on the loss takes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gaprune.calibration.samples import Samples
from gaprune.callbacks import Callbacks, Observer, ObserverGroup, WarnOnce
from gaprune.config import EVOLVED, Settings, make_settings
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, target_from_module
from gaprune.pattern_names import LATENCY
from gaprune.profiling import run_profiler
from gaprune.records import Generation
from gaprune.runs.checkpointer import Checkpointer, FolderCheckpointer
from gaprune.runs.job import PruneJob
from gaprune.runs.latency_budget import calibrate, measure_latency
from gaprune.runs.max_drop import prune_to_limit
from gaprune.runs.open_directory import OpenRun, open_run
from gaprune.runs.resolve_settings import check_settings
from gaprune.runs.result import Result
from gaprune.runs.run import PruningRun
from gaprune.workers import WorkerOptions, choose_driver_device, on_device


@torch.inference_mode(mode=False)  # whatever the caller has switched off
@torch.enable_grad()
def prune(  # noqa: PLR0913 # what is known about a network, each by its own name
    model: nn.Module,
    *,
    sparsity: float | None = None,
    inputs: InputOptions | None = None,
    test: tuple[Tensor, Tensor] | None = None,
    prune_also: tuple[str, ...] = (),
    observer: Observer | None = None,
    on_generation: Callable[[Generation], object] | None = None,
    out: str | Path | None = None,
    profile: bool = False,
    **settings: Any,
) -> Result:
    """Prune a pretrained network without its training data; the network itself is not changed.

    Args:
        model: any trained network that takes one tensor and returns one.
        sparsity: fraction of its prunable weights to remove, in (0, 1). With `max_drop`, the
            agreement on the validation inputs that may be lost (0.01 is one point), the largest that is tried:
            the result is the sparsest that holds, found in several searches (`result.tried`), to
            each of which the limits apply.
        inputs: shape, range, normalisation of one input; the shape can be left out where the
            first layer is linear or an embedding.
        test: inputs `[N, …]` as the network takes them and int64 labels `[N]`, for the final
            accuracy only; they never reach the search.
        prune_also: further parameters to prune, by qualified name.
        observer: told of progress.
        on_generation: called with the record of every generation that ends
            (`gaprune.callbacks.Callbacks` has functions for more); an error that it raises ends the
            run.
        out: a run directory, new or empty: what was searched for is kept there after every
            generation (see `gaprune.resume`), and the result at the end.
        profile: measure where the time goes (`result.profile`); nothing else changes.
        settings: any other field of `Settings` (max_drop, preset, calibration inputs, seed, workers, …).

    Returns:
        The result; `result.pruned_model()` is the pruned copy, and `gaprune.save_run` writes a
        run directory.

    Raises:
        InputError: a setting or the network breaks a rule; the message says which.
        GapruneError: no sparsity holds `max_drop`.

    Examples:
        >>> import torch
        >>> from gaprune import InputOptions, prune
        >>> linear = torch.nn.Linear
        >>> net = torch.nn.Sequential(linear(8, 16), torch.nn.ReLU(), linear(16, 3))
        >>> shown = InputOptions(range=(0, 1))
        >>> found = prune(net, sparsity=0.5, inputs=shown, generations=1, steps=2)
        >>> found.kept, found.target.layout.total
        (88, 176)
    """
    if on_generation is not None:
        observer = ObserverGroup(observer or Observer(), Callbacks(on_generation=on_generation))
    chosen = make_settings({"sparsity": sparsity, **settings})
    check_settings(chosen)
    target = target_from_module(
        model,
        inputs=inputs or InputOptions(),
        prune_also=prune_also,
        device=choose_driver_device(WorkerOptions.from_settings(chosen)),
    )
    labelled = None if test is None else Samples(*test, "test data given by the caller")
    with nullcontext() if out is None else open_run(out) as run_directory:
        with run_profiler(enabled=profile) as profiler:
            result = prune_target(
                target, chosen, test=labelled, observer=observer, run_directory=run_directory
            )
        result = result.timed(profiler)
        if run_directory is not None:
            run_directory.save(result)
    return result


def prune_target(
    target: Target,
    settings: Settings,
    *,
    test: Samples | None = None,
    observer: Observer | None = None,
    run_directory: OpenRun | None = None,
    job: PruneJob | None = None,
) -> Result:
    """Prune a loaded target; see `prune`.

    Args:
        target: the network.
        settings: how to prune it.
        test: labelled inputs for the final accuracy, such as `zoo_test(target)`; None measures
            none.
        observer: told of progress.
        run_directory: the run directory to keep checkpoints in, of which `run_directory.save` makes a whole run.
        job: what was asked for on the command line, to be written into it.

    Raises:
        InputError: a setting does not fit the target; nothing has been computed then.
        GapruneError: no sparsity holds `max_drop`.
    """
    observer = observer or Observer()
    checkpointer: Checkpointer | None = None
    if run_directory is not None and settings.method == EVOLVED and settings.checkpoint_every:
        checkpointer = FolderCheckpointer(run_directory, settings.checkpoint_every, observer, job)
    elif run_directory is not None:
        run_directory.mark_unwatched()
    return run_pruning(target, settings, test, observer, checkpointer)


def run_pruning(
    target: Target,
    settings: Settings,
    test: Samples | None,
    observer: Observer,
    checkpointer: Checkpointer | None,
) -> Result:
    """Do one run, or with `max_drop` as many as it takes, and keep them with the keeper.

    What comes of it lies on the CPU, wherever the target is.
    """
    here = (
        target if WorkerOptions.from_settings(settings).in_process else target.to("cpu")
    )  # what actors are sent
    given = calibrate(here, settings, observer)
    settings = given.settings
    with on_device(str(here.device)):
        if settings.max_drop is None:
            result = PruningRun(here, settings, test, observer, checkpointer).result()
        else:
            result = prune_to_limit(
                PruningRun(here, settings, test, WarnOnce(observer), checkpointer)
            )
    if settings.budget == LATENCY:
        result = replace(result, latency=measure_latency(here, result.masks, given).record())
    return replace(result, target=target.to("cpu"))
