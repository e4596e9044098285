"""Run methods on one network, measure what each makes, and collect the rows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from gaprune.calibration.in_memory import name_data, with_data
from gaprune.calibration.samples import Samples
from gaprune.comparison.comparison_report import Comparison, publish
from gaprune.comparison.context import (
    ComparisonContext,
    ComparisonObserver,
    ComparisonObservers,
    part_name,
)
from gaprune.comparison.methods.method_registry import Method, find_methods
from gaprune.comparison.rows import Row, RowKey
from gaprune.comparison.spec import ComparisonData, ComparisonSpec
from gaprune.comparison.store import CONFIG, Store, identity_of, open_store, requested_files
from gaprune.config import make_settings
from gaprune.errors import GapruneError, InputError
from gaprune.evaluation.held_out import HeldOut
from gaprune.evaluation.labelled import check_labelled, read_labelled, read_test
from gaprune.evaluation.objectives import find_objective
from gaprune.io.bounded_reading import parse_toml
from gaprune.io.trusted_code import remember_code
from gaprune.masks.budget import keep_total
from gaprune.models.forward import batched_forward, standard_torch
from gaprune.models.input_spec import InputOptions
from gaprune.models.patterns import searched_layout
from gaprune.models.target import LayerPatterns, Target, target_from_module
from gaprune.pattern_names import UNSTRUCTURED, pattern_sparsity
from gaprune.runs.option_keys import UNUSED
from gaprune.runs.python_display import python_display
from gaprune.runs.setup import check_settings
from gaprune.workers import WorkerOptions, choose_device, on_device
from gaprune.workers.serial import torch_threads

_SPEC_FIELDS = ("training", "epochs", "schedule", "clusters")
_STEP_FIELDS = ("sparsity", "accuracy", "agreement", "epochs")  # recorded for every step of a path


@standard_torch()
def compare(  # noqa: PLR0913 # what belongs to a network, each by its own name
    model: nn.Module,
    *,
    sparsity: float | Sequence[float] | None = None,
    methods: str | Sequence[str] = "all",
    seeds: int | Sequence[int] = 0,
    inputs: InputOptions | None = None,
    train: object = None,
    test: object = None,
    prune_also: LayerPatterns = (),
    ignore: LayerPatterns = (),
    output: str | int | None = None,
    fold_parametrizations: bool = False,
    out: str | Path | None = None,
    overwrite: bool = False,
    observer: ComparisonObserver | None = None,
    progress: bool = True,
    **options: Any,
) -> Comparison:
    """Compare methods on a live network, which stays unchanged; see `gaprune compare --help`.

    Args:
        model: any trained network that takes one tensor and returns one.
        sparsity: one or several fractions of weights (under `pattern`, of blocks or channels) to
            remove; an N:M pattern implies it.
        methods: one or several names as `gaprune.comparison.find_methods` takes them.
        seeds: one or several; methods without randomness run for the first one only.
        inputs: shape, range, normalisation of one input.
        train: labelled data, as `test` of `gaprune.prune`, for the methods that train; without it
            the rows of those methods hold an error.
        test: held-out labelled data that all methods are measured on; without it the agreement
            with the dense network is measured on the validation inputs.
        prune_also: further parameters to prune; see `gaprune.prune`.
        ignore: parameters to leave whole.
        output: which output is compared, where the network returns several.
        fold_parametrizations: see `gaprune.prune`.
        out: folder that keeps every row as soon as it is known; the next call continues there.
        overwrite: whether to delete rows that are there.
        observer: receives progress and rows.
        progress: whether to show a progress bar on stderr.
        options: further fields of `ComparisonSpec` (training, epochs, schedule, clusters), and of
            `Settings` (preset, calibration, pattern, generations, workers, …); `floor` applies to
            the methods that search (evolved, edge-popup).

    Raises:
        InputError: something breaks a rule; nothing has been computed then.

    Examples:
        >>> import torch
        >>> from gaprune import InputOptions, compare
        >>> linear = torch.nn.Linear
        >>> net = torch.nn.Sequential(linear(8, 16), torch.nn.ReLU(), linear(16, 3))
        >>> inputs = InputOptions(range=(0, 1))
        >>> result = compare(net, sparsity=(0.5, 0.9), methods=("magnitude", "lamp"), inputs=inputs)
        >>> [(row.method, row.sparsity) for row in result.rows]
        [('magnitude', 0.5), ('magnitude', 0.9), ('lamp', 0.5), ('lamp', 0.9)]
    """
    for name in options:
        if name in UNUSED:
            raise InputError(f"{name}: is no option of a comparison; see sparsity, methods, seeds")
    implied = pattern_sparsity(options.get("pattern", UNSTRUCTURED))  # 2:4 implies 0.5
    sparsity = implied if sparsity is None else sparsity
    if sparsity is None:
        raise InputError(
            "sparsity: none given; name one or several fractions of weights to remove, such as 0.9"
        )
    options, arrays = name_data(options)
    fields = {name: options.pop(name) for name in _SPEC_FIELDS if name in options}
    spec = ComparisonSpec(
        (sparsity,) if isinstance(sparsity, (int, float)) else tuple(sparsity),
        methods=(methods,) if isinstance(methods, str) else tuple(methods),
        seeds=(seeds,) if isinstance(seeds, int) else tuple(seeds),
        settings=make_settings({"sparsity": implied or 0.5, **options}),
        **fields,
    )
    worker_options = WorkerOptions.from_settings(spec.settings)
    device = choose_device(worker_options)
    target = target_from_module(
        model,
        inputs=inputs,
        prune_also=prune_also,
        ignore=ignore,
        fold_parametrizations=fold_parametrizations,
        device=device if worker_options.in_process else "cpu",
        output=output,
    )
    target = with_data(target, arrays, spec.settings)
    data = ComparisonData(
        None if train is None else read_labelled("train", train, target),
        None if test is None else read_test(test, target),
    )
    with python_display(progress=progress) as display:
        observers = ComparisonObservers(display, observer or ComparisonObserver())
        return compare_target(
            target, spec, data=data, out=out, overwrite=overwrite, observer=observers
        )


@standard_torch()
def compare_target(  # noqa: PLR0913 # data and folder besides the spec, each by its own name
    target: Target,
    spec: ComparisonSpec,
    *,
    data: ComparisonData = ComparisonData(),  # noqa: B008 # immutable
    out: str | Path | None = None,
    overwrite: bool = False,
    config: str | None = None,
    observer: ComparisonObserver | None = None,
) -> Comparison:
    """Compare methods on a loaded target; see `compare`.

    `out` is the folder of the rows, see `gaprune.comparison.store`; None keeps them in memory.
    `config` is the content of its `config.toml`. Without an `observer`, progress and warnings are
    shown as `compare` shows them.

    Raises:
        InputError: something breaks a rule; nothing has been computed then.
    """
    if observer is None:
        with python_display() as display:
            observer = ComparisonObservers(display)
            return compare_target(
                target,
                spec,
                data=data,
                out=out,
                overwrite=overwrite,
                config=config,
                observer=observer,
            )
    chosen = find_methods(spec.methods, spec.settings.pattern, spec.schedule)
    data = _checked(target, spec, data)
    if target.inputs.assumed:  # warn once, not in every run of a search
        observer.warning(
            "the value range of the inputs is not stated; 0 to 1 is assumed "
            "(--range=LOW,HIGH or --mean and --std state it)"
        )
        inputs = replace(target.inputs, assumed=False)
        target = replace(target, inputs=inputs)
    context = ComparisonContext(target, spec, data.train, observer)
    with torch_threads(spec.settings.threads_per_worker), on_device(str(target.device)):
        if out is None:
            return _run(context, chosen, data.test, None)
        with open_store(out, identity_of(target, spec, data), overwrite=overwrite) as store:
            if config is not None:
                store.write(CONFIG, config)
                remember_code(store.folder, parse_toml(config))
            comparison = _run(context, chosen, data.test, store)
            publish(comparison, store, observer.warning)
            return comparison


def _checked(target: Target, spec: ComparisonSpec, data: ComparisonData) -> ComparisonData:
    """Check everything that can be checked before any work; return the data converted."""
    settings = spec.settings
    check_settings(settings)
    for sparsity in spec.sparsities:  # refuse empty layers before any work
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
    context: ComparisonContext, chosen: Sequence[Method], test: Samples | None, store: Store | None
) -> Comparison:
    if test is None:  # agreement on the validation inputs of seed 0
        test = context.calibration(0).validation._replace(labels=None)
    held_out = HeldOut(context.target, test)
    # a path passes through them in this order
    sparsities = tuple(sorted(set(context.spec.sparsities)))
    seeds = list(dict.fromkeys(context.spec.seeds))  # without duplicates, in their order
    runs = [
        MethodRun(context, method, seed, sparsities, held_out)
        for seed in seeds
        for method in chosen
        if method.seeded or seed == seeds[0]  # other seeds would repeat the row
    ]
    stored = {} if store is None else store.rows
    rows: dict[RowKey, Row] = {
        row.key: row for run in runs for row in stored.values() if run.is_valid(row)
    }
    total = len(runs) * len(sparsities)
    if rows:
        context.observer.phase("rows", f"{len(rows)} of {total} are there already")
    for run in runs:
        for row in run.rows({sparsity for sparsity in sparsities if run.key(sparsity) not in rows}):
            if store is not None:
                store.add(row)  # synced before anybody hears of it
            rows[row.key] = row
            context.observer.row(row, len(rows), total)
    return Comparison(
        context.target.name,
        tuple(rows[run.key(sparsity)] for run in runs for sparsity in sparsities),
        held_out.dense.accuracy,
        held_out.source,
        context.spec.settings.pattern,
    )


@dataclass(frozen=True)
class MethodRun:
    """One method with one seed at all requested sparsities, which rise, measured on `held_out`."""

    context: ComparisonContext
    method: Method
    seed: int
    sparsities: tuple[float, ...]
    held_out: HeldOut

    @property
    def _path(self) -> tuple[float, ...]:
        return self.sparsities if self.method.path else ()

    def key(self, sparsity: float) -> RowKey:
        """Return the key of its row at one sparsity."""
        return self.method.name, sparsity, self.seed

    def is_valid(self, row: Row) -> bool:
        """Tell whether a stored row belongs to this run, is up to date and holds no error."""
        return (
            row.sparsity in self.sparsities
            and row.key == self.key(row.sparsity)
            and (row.path, row.code) == (self._path, self.method.code)
            and row.error is None
        )

    def rows(self, missing: AbstractSet[float]) -> Iterator[Row]:
        """Yield the row of every missing sparsity, with an error or a note if there is no score."""
        note = self.method.exclusion(self.context.spec.settings.pattern)
        if note is not None:
            yield from (self._row(sparsity=s, note=note) for s in self.sparsities if s in missing)
            return
        # a path is one run
        parts = [self.sparsities] if self.method.path else [(s,) for s in self.sparsities]
        for part in parts:
            left = [sparsity for sparsity in part if sparsity in missing]
            text = "the method returned no network for this sparsity"
            try:
                for row in self._measured(part) if left else ():
                    if row.sparsity in left:
                        left.remove(row.sparsity)
                        yield row
                    if not left:  # later sparsities are already stored
                        break
            except Exception as error:  # noqa: BLE001 # user code may raise anything; others go on
                text = " ".join(str(error).split())
                if not isinstance(error, GapruneError):
                    text = f"{type(error).__name__}: {text}"
            yield from (self._row(sparsity=sparsity, error=text) for sparsity in left)

    def _measured(self, part: Sequence[float]) -> Iterator[Row]:
        """Run the method; measure its networks, and the seconds of its own work so far."""
        name = part_name(self.method.name, self.seed, None if self.method.path else part[0])
        self.context.observer.progress(name, 0, None)
        if self.method.uses_calibration:
            self.context.evaluator(self.seed)  # shared by all methods, so not timed
        steps: list[dict[str, float | None]] = []
        seconds, since = 0.0, time.monotonic()
        for result in self.method.run(self.context, part, self.seed):
            seconds += time.monotonic() - since
            accuracy, agreement = self.held_out.measure(result.model)  # not timed
            row = self._row(
                sparsity=result.sparsity,
                actual=1 - result.keep_count / self.context.target.layout.total,
                accuracy=accuracy,
                agreement=agreement,
                evaluations=result.evaluations,
                epochs=round(result.epochs, 6),
                seconds=round(seconds, 3),
            )
            if self.method.needs.training:
                steps.append({name: getattr(row, name) for name in _STEP_FIELDS})
                row = replace(row, steps=tuple(steps))
            yield row
            since = time.monotonic()

    def _row(self, **fields: Any) -> Row:
        return Row(
            target=self.context.target.name,
            method=self.method.name,
            seed=self.seed,
            needs=self.method.needs_in(self.context),
            dense_accuracy=self.held_out.dense.accuracy,
            path=self._path,
            code=self.method.code,
            **fields,
        )
