"""Run methods on one network and measure what each hands in, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gaprune.calibration.samples import Samples
from gaprune.comparison.context import (
    ComparisonContext,
    ComparisonObserver,
)
from gaprune.comparison.fingerprint import identity_of, requested_files
from gaprune.comparison.measure_rows import MethodRun, held_out
from gaprune.comparison.methods.method_registry import Method, find_methods
from gaprune.comparison.publish import Comparison, publish
from gaprune.comparison.rows import Row, RowKey
from gaprune.comparison.spec import NOTHING, UNUSED, ComparisonData, ComparisonSpec
from gaprune.comparison.store import CONFIG, Store, open_store
from gaprune.config import make_settings
from gaprune.errors import InputError
from gaprune.evaluation.labelled import check_labelled
from gaprune.evaluation.objectives import find_objective
from gaprune.masks.budget import keep_total
from gaprune.models.forward import batched_forward
from gaprune.models.input_spec import InputOptions
from gaprune.models.patterns import searched_layout
from gaprune.models.target import Target, target_from_module
from gaprune.pattern_names import UNSTRUCTURED, pattern_sparsity
from gaprune.runs.resolve_settings import check_settings
from gaprune.workers import WorkerOptions, choose_driver_device, on_device
from gaprune.workers.serial import torch_threads

_QUESTION = ("training", "epochs", "schedule", "clusters")


@torch.inference_mode(mode=False)  # whatever the caller has switched off
@torch.enable_grad()
def compare(  # noqa: PLR0913 # what belongs to a network, each by its own name
    model: nn.Module,
    *,
    sparsity: float | Sequence[float] | None = None,
    methods: str | Sequence[str] = "all",
    seeds: int | Sequence[int] = 0,
    inputs: InputOptions | None = None,
    train: tuple[Tensor, Tensor] | None = None,
    test: tuple[Tensor, Tensor] | None = None,
    prune_also: tuple[str, ...] = (),
    out: str | Path | None = None,
    overwrite: bool = False,
    observer: ComparisonObserver | None = None,
    **options: Any,
) -> Comparison:
    """Compare methods on a live network, which stays as it is; see `gaprune compare --help`.

    Args:
        model: any trained network that takes one tensor and returns one.
        sparsity: one or several fractions of weights (under `pattern`, of blocks or channels) to
            remove; an N:M pattern says it itself.
        methods: one or several names as `gaprune.comparison.find_methods` takes them.
        seeds: one or several; a method without chance runs with the first one only.
        inputs: shape, range, normalisation of one input.
        train: inputs `[N, …]` and labels `[N]` for the methods that train; without them these
            say so in their rows.
        test: held-out inputs and labels that all are measured on; without them the agreement with
            the dense network is measured on the validation inputs calibration inputs.
        prune_also: further parameters to prune, by qualified name.
        out: folder that keeps every row as soon as it is known; the next call goes on there.
        overwrite: whether rows that are there are thrown away.
        observer: told of progress and rows.
        options: further fields of `ComparisonSpec` (training, epochs, schedule, clusters), and of
            `Settings` (preset, calibration inputs, pattern, generations, workers, …); `floor` holds for the
            masks that are searched for (evolved, edge-popup).

    Raises:
        InputError: something breaks a rule; nothing has been computed then.

    Examples:
        >>> import torch
        >>> from gaprune import InputOptions, compare
        >>> linear = torch.nn.Linear
        >>> net = torch.nn.Sequential(linear(8, 16), torch.nn.ReLU(), linear(16, 3))
        >>> shown = InputOptions(range=(0, 1))
        >>> found = compare(net, sparsity=(0.5, 0.9), methods=("magnitude", "lamp"), inputs=shown)
        >>> [(row.method, row.sparsity) for row in found.rows]
        [('magnitude', 0.5), ('magnitude', 0.9), ('lamp', 0.5), ('lamp', 0.9)]
    """
    for name in options:
        if name in UNUSED:
            raise InputError(f"{name}: is no option of a comparison; see sparsity, methods, seeds")
    implied = pattern_sparsity(options.get("pattern", UNSTRUCTURED))
    sparsity = implied if sparsity is None else sparsity
    if sparsity is None:
        raise InputError(
            "sparsity: none given; name one or several fractions of weights to remove, such as 0.9"
        )
    sparsities = (sparsity,) if isinstance(sparsity, (int, float)) else tuple(sparsity)
    own = {name: options.pop(name) for name in _QUESTION if name in options}
    spec = ComparisonSpec(
        sparsities,
        methods=(methods,) if isinstance(methods, str) else tuple(methods),
        seeds=(seeds,) if isinstance(seeds, int) else tuple(seeds),
        settings=make_settings({"sparsity": implied or 0.5, **options}),
        **own,
    )
    target = target_from_module(
        model,
        inputs=inputs or InputOptions(),
        prune_also=prune_also,
        device=choose_driver_device(WorkerOptions.from_settings(spec.settings)),
    )
    data = ComparisonData(
        None if train is None else Samples(*train, "training data given by the caller"),
        None if test is None else Samples(*test, "test data given by the caller"),
    )
    return compare_target(target, spec, data=data, out=out, overwrite=overwrite, observer=observer)


def compare_target(  # noqa: PLR0913 # data and place beside the question, each by its own name
    target: Target,
    spec: ComparisonSpec,
    *,
    data: ComparisonData = NOTHING,
    out: str | Path | None = None,
    overwrite: bool = False,
    config: str | None = None,
    observer: ComparisonObserver | None = None,
) -> Comparison:
    """Compare methods on a loaded target; see `compare`.

    Args:
        target: the dense network.
        spec: what is compared.
        data: what is trained with and measured on.
        out: folder of the rows, see `gaprune.comparison.store`; None keeps them in memory.
        overwrite: whether rows that are there are thrown away.
        config: what is written into the folder as its `config.toml`.
        observer: told of progress and rows.

    Raises:
        InputError: something breaks a rule; nothing has been computed then.
    """
    listener = observer or ComparisonObserver()
    chosen = find_methods(spec.methods, spec.settings.pattern)
    data = _checked(target, spec, data)
    if target.inputs.assumed:  # said once, not by every run of a search
        listener.warning(
            "the value range of the inputs is not stated; 0 to 1 is assumed "
            "(--range LOW,HIGH or --mean and --std say it)"
        )
        inputs = replace(target.inputs, assumed=False)
        target = replace(target, network=replace(target.network, inputs=inputs))
    context = ComparisonContext(
        target=target,
        settings=spec.settings,
        train=data.train,
        training=spec.training,
        epochs=spec.epochs,
        schedule=spec.schedule,
        clusters=spec.clusters,
        observer=listener,
    )
    with torch_threads(spec.settings.threads_per_worker), on_device(str(target.device)):
        if out is None:
            return _run(context, spec, chosen, data.test, None)
        with open_store(out, identity_of(context, data), overwrite=overwrite) as store:
            if config is not None:
                store.write(CONFIG, config)
            found = _run(context, spec, chosen, data.test, store)
            publish(found, store, listener.warning)
            return found


def _checked(target: Target, spec: ComparisonSpec, data: ComparisonData) -> ComparisonData:
    """Return data as the network takes it, once everything that can be checked at once is right."""
    settings = spec.settings
    check_settings(settings)
    for sparsity in spec.sparsities:
        keep_total(searched_layout(target, settings), sparsity)
    for file in requested_files(settings, target.inputs):
        file.read(target.inputs)
    find_objective(settings.objective, batched_forward(target.model, target.example()))
    return ComparisonData(
        *(
            None if samples is None else check_labelled(name, samples, target)
            for name, samples in data._asdict().items()
        )
    )


def _run(
    context: ComparisonContext,
    spec: ComparisonSpec,
    chosen: Sequence[Method],
    test: Samples | None,
    store: Store | None,
) -> Comparison:
    judge = held_out(context, test)
    sparsities = sorted(set(spec.sparsities))
    seeds = list(dict.fromkeys(spec.seeds))
    entries = [
        MethodRun(context, method, seed, tuple(sparsities))
        for seed in seeds
        for method in chosen
        if method.seeded or seed == seeds[0]
    ]
    stored = {} if store is None else store.rows
    rows: dict[RowKey, Row] = {
        row.key: row for entry in entries for row in stored.values() if entry.made(row)
    }
    total = len(entries) * len(sparsities)
    if rows:
        context.observer.phase("rows", f"{len(rows)} of {total} are there already")
    for entry in entries:
        missing = {one for one in sparsities if entry.key(one) not in rows}
        for row in entry.rows(missing, judge):
            if store is not None:
                store.add(row)
            rows[row.key] = row
            context.observer.row(row, len(rows), total)
    ordered = tuple(rows[entry.key(one)] for entry in entries for one in sparsities)
    return Comparison(
        context.target.name,
        ordered,
        judge.dense.accuracy,
        judge.source,
        spec.settings.pattern,
    )
