"""The entry points: from a network and settings to a result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from gaprune.calibration.in_memory import name_data, with_data
from gaprune.calibration.parse import AUTO, PROCEDURAL
from gaprune.calibration.samples import Samples
from gaprune.calibration.weighing import weighing
from gaprune.callbacks import Callbacks, Observer, ObserverGroup, WarnOnce
from gaprune.config import EVOLVED, Settings, make_settings
from gaprune.errors import GapruneError
from gaprune.evaluation.labelled import read_test
from gaprune.io.checkpoints import Checkpoint
from gaprune.models.forward import standard_torch
from gaprune.models.input_spec import InputOptions
from gaprune.models.name_patterns import layer_patterns
from gaprune.models.target import LayerPatterns, Target, target_from_module, unwrapped
from gaprune.models.time_limit import TimeIsUp, TimeLimit
from gaprune.profiling import profiled, run_profiler
from gaprune.records import Generation
from gaprune.runs.checkpointer import Checkpointer
from gaprune.runs.job import PruneJob
from gaprune.runs.latency_budget import find_budget_macs
from gaprune.runs.live_networks import remember_network
from gaprune.runs.max_drop import MaxDropSearch
from gaprune.runs.open_directory import OpenRun, open_run
from gaprune.runs.python_display import python_display
from gaprune.runs.result import Result
from gaprune.runs.run import PruningRun
from gaprune.runs.setup import CheckedSettings, add_layout, check_settings, resolve_settings


@standard_torch()
def prune(  # noqa: PLR0913 # what is known about a network, each by its own name
    model: nn.Module,
    *,
    sparsity: float | None = None,
    inputs: InputOptions | None = None,
    test: object = None,
    prune_also: LayerPatterns = (),
    ignore: LayerPatterns = (),
    output: str | int | None = None,
    fold_parametrizations: bool = False,
    example_inputs: object = None,
    observer: Observer | None = None,
    on_generation: Callable[[Generation], object] | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    profile: bool = False,
    **settings: Any,
) -> Result:
    """Prune a pretrained network without its training data; the network itself is not changed.

    Args:
        model: any trained network that takes one tensor and returns one.
        sparsity: fraction of its prunable weights to remove, in (0, 1). With `max_drop`, the
            agreement on the validation inputs that may be lost (0.01 is one percentage point), it
            is the largest that is tried; the result is the sparsest within that limit, found in
            several searches (`result.trials`), to each of which the limits apply; the set-up before
            the first one has to fit into `seconds` as well.
        inputs: shape, range, normalisation of one input; the shape can be left out if the first
            layer is linear or an embedding.
        test: labelled data for the final accuracy only; it never reaches the search. A pair of
            inputs `[N, …]` and labels `[N]`, a `Dataset` or a `DataLoader` of such pairs, or a
            file. Values as those of `calibration`.
        prune_also: further parameters to prune: names, globs, or types as in `MyLayer.weight`.
        ignore: parameters, layers and layer types to leave whole: names, globs, or the layers
            and types themselves. They take no part in the budget.
        output: which output is compared, where the network returns several: a key, an attribute or
            an index.
        fold_parametrizations: make weights plain that weight_norm, spectral_norm or a
            parametrization computes, in the copy that is pruned; results have the plain names.
        example_inputs: arguments of forward, for networks with several: a tuple or a dict of
            arrays `[N, …]`, or a .npz file. From 32 examples they are the calibration inputs;
            around fewer, integers are drawn from their range, other numbers from a normal
            distribution, and masks are repeated.
        observer: told of progress.
        on_generation: called with the record of every generation (`gaprune.callbacks.Callbacks`
            has functions for more); an error that it raises ends the run.
        out: a run directory, new or empty: checkpoints are written there after every generation
            (see `gaprune.resume`), and the result at the end.
        progress: whether to show a progress bar on stderr.
        profile: measure where the time goes (`result.profile`); nothing else changes.
        settings: any other field of `Settings` (max_drop, preset, seed, workers, …). `calibration`
            and `validation` also take data of the network's domain, without labels or with labels
            that are ignored: a tensor or an array `[N, …]`, a `Dataset`, a `DataLoader` or another
            iterable of batches. Of the last three only as many inputs are read as the counts ask
            for (with `gradient_count`, so many). Values are uint8, or in the range that `inputs`
            states before or after `mean` and `std`. `layer_sparsity` takes a dictionary of names,
            globs, layers or layer types and fractions.
            `seconds` counts from the call and includes everything but the accuracy on test data
            and, with budget `latency`, measured times. A result follows at most 3 s or 10 % later.

    Returns:
        The result; `result.pruned_model()` is the pruned copy, and `gaprune.save_run` writes a
        run directory.

    Raises:
        InputError: a setting or the network breaks a rule; the message says which.
        GapruneError: no sparsity is within `max_drop`.

    Examples:
        >>> import torch
        >>> from gaprune import InputOptions, prune
        >>> linear = torch.nn.Linear
        >>> net = torch.nn.Sequential(linear(8, 16), torch.nn.ReLU(), linear(16, 3))
        >>> inputs = InputOptions(range=(0, 1))
        >>> result = prune(net, sparsity=0.5, inputs=inputs, generations=1, steps=2)
        >>> result.kept, result.target.layout.total
        (88, 176)
    """
    started = time.monotonic()
    callbacks = Callbacks(on_generation=on_generation)
    stated, data = name_data({"sparsity": sparsity, **settings})
    fractions = stated.get("layer_sparsity")
    if isinstance(fractions, Mapping) and isinstance(model, nn.Module):
        names = layer_patterns(unwrapped(model), [*fractions], "layer_sparsity")
        stated["layer_sparsity"] = dict(zip(names, fractions.values(), strict=True))
    checked = check_settings(make_settings(stated))
    target = target_from_module(
        model,
        inputs=inputs,
        prune_also=prune_also,
        ignore=ignore,
        fold_parametrizations=fold_parametrizations,
        example_inputs=example_inputs,
        device=checked.driver_device,
        output=output,
        share_weights=True,  # a second network may not fit into memory
    )
    target = with_data(target, data, checked.settings)
    versions = _versions(model)
    samples = None if test is None else read_test(test, target)
    with (
        python_display(progress=progress) as display,
        nullcontext() if out is None else open_run(out) as run_directory,
    ):
        if out is not None:
            remember_network(out, model)
        with run_profiler(enabled=profile) as profiler:
            run = prepare_run(
                target,
                checked,
                test=samples,
                observer=ObserverGroup(display, observer or Observer(), callbacks),
                run_directory=run_directory,
                started=started,
            )
            result = run.run()
        if _versions(model) != versions:
            raise GapruneError(
                "model: its weights changed while it was pruned, so the result is worth nothing; "
                "prune a copy of a network that is trained at the same time (copy.deepcopy)"
            )
        result = result.timed(profiler)
        if run_directory is not None:
            run_directory.save(result)
    # from here on the caller may change the network
    return replace(result, target=result.target.copied("cpu"))


def _versions(model: nn.Module) -> list[int]:
    """Return how often every parameter was changed in place, as far as torch counts it."""
    return [p._version for p in model.parameters() if not p.is_inference()]  # noqa: SLF001


@standard_torch()
def prune_target(
    target: Target,
    settings: Settings,
    *,
    test: Samples | None = None,
    observer: Observer | None = None,
) -> Result:
    """Prune a loaded target as `prune` does; `zoo_test(target)` is the test data of a zoo network.

    Without an `observer`, progress and warnings are shown as `prune` shows them.

    Raises:
        InputError: a setting does not fit the target.
        GapruneError: no sparsity is within `max_drop`.
    """
    with python_display() as display:
        return prepare_run(target, settings, test=test, observer=observer or display).run()


def prepare_run(  # noqa: PLR0913 # parts of a run, each by its own name
    target: Target,
    settings: Settings | CheckedSettings,
    *,
    test: Samples | None = None,
    observer: Observer | None = None,
    run_directory: OpenRun | None = None,
    job: PruneJob | None = None,
    start: Checkpoint | None = None,
    started: float | None = None,
) -> PruningRun | MaxDropSearch:
    """Return a run that is ready to `run`; only a latency budget is measured now.

    Checkpoints, and the job of the command line, are written into the run directory. `start` is the
    first checkpoint of a run that is resumed: its settings have no gaps. The limit `seconds` counts
    from `started`, a time of `time.monotonic()`, or from now. See `prune_target`.

    Raises:
        InputError: a setting does not fit the target.
    """
    observer = WarnOnce.of(observer)
    checked = settings
    if isinstance(checked, Settings):
        checked = check_settings(checked, target.device)
    if not checked.worker_options.in_process:
        target = target.to("cpu")  # what actors are sent
    seconds = checked.settings.seconds if checked.settings.method == EVOLVED else None
    limit = TimeLimit(seconds, started)
    checked = find_budget_macs(target, checked, observer)
    with profiled("settings"):
        resolve = resolve_settings if start is None else add_layout
        try:
            with limit.active(target.model), weighing(observer):
                resolved = resolve(checked, target)
        except TimeIsUp:  # while `auto` was choosing; the run will say so
            words = checked.settings.calibration
            plain = tuple(PROCEDURAL if word == AUTO else word for word in words)
            settings = checked.settings.model_copy(update={"calibration": plain})
            resolved = resolve(replace(checked, settings=settings), target)
    asked = resolved.settings
    every = asked.checkpoint_every if asked.method == EVOLVED else 0
    checkpointer = Checkpointer(run_directory, every, observer, job, start)
    run = PruningRun(target, resolved, test, observer, checkpointer)
    run.limit = limit
    return run if asked.max_drop is None else MaxDropSearch(run)
