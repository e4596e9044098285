"""The table of methods: what each does, what it needs, and how it is run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from gaprune import plugins
from gaprune.calibration.calibration_set import requested_data_levels
from gaprune.calibration.provenance import highest_level
from gaprune.comparison.context import (
    BLOCK,
    CHANNELS,
    N_OF_M,
    UNIT_KINDS,
    WEIGHTS,
    ComparisonContext,
    MethodFunction,
    kind_of,
)
from gaprune.comparison.methods.iterative import SCHEDULES, PruningStep
from gaprune.comparison.methods.method_functions import (
    by_batchnorm_scale,
    by_criterion,
    by_percentile,
    clustered,
    distilled,
    evolved,
    folded_channels,
    iterative,
    merged_channels,
    repaired_channels,
    scores_by_gradient,
    slimmed,
    whole_channels,
)
from gaprune.comparison.rows import MethodRequirements
from gaprune.config import EVOLVED
from gaprune.criteria import CRITERIA, Criterion, DenseNetwork, read_criterion
from gaprune.errors import InputError, unknown_name
from gaprune.io.file_hash import content_of
from gaprune.io.user_code import call_user, code_file, load_function
from gaprune.models.target import private_copy
from gaprune.pattern_names import UNSTRUCTURED
from gaprune.runs.option_keys import ALL, IMP, LINEAR

LAYERWISE = "-layer"  # suffix of a criterion that ranks inside layers of equal density
CALIBRATION, TRAIN = "calibration", "labelled"  # values of a method's data, besides `none`


@dataclass(frozen=True)
class Method:
    """One entry of the table.

    Attributes:
        run: from a context, sparsities and a seed to networks, in the order of the sparsities.
        needs: what it needs; data `calibration` stands for the level of the calibration inputs.
        seeded: whether its result depends on the seed; otherwise it runs for the first seed only.
        path: whether one run passes through all sparsities, each reached from the one before.
        excluded: kind of pattern → why the method does not apply under it.
        in_all: kinds of patterns under which `all` includes it; None: all kinds.
    """

    name: str  # what the user writes
    run: MethodFunction
    description: str  # one line for people
    source: str  # the paper, or another origin
    needs: MethodRequirements = field(default_factory=MethodRequirements)
    seeded: bool = False
    path: bool = False
    code: str = ""  # hash of the user's file that defines it, or empty
    excluded: Mapping[str, str] = field(default_factory=dict)
    in_all: Collection[str] | None = None

    @property
    def uses_calibration(self) -> bool:
        """Whether it uses the context's calibration inputs; evolution generates its own."""
        return self.needs.data == CALIBRATION and self.name != EVOLVED

    def needs_in(self, context: ComparisonContext) -> MethodRequirements:
        """Return what it needs in this comparison: `calibration` becomes their data level."""
        if self.needs.data != CALIBRATION:
            return self.needs
        level = highest_level(requested_data_levels(context.spec.settings, context.target))
        return replace(self.needs, data=level)

    def exclusion(self, pattern: str) -> str | None:
        """Say why it does not apply under a pattern, or return None."""
        reason = self.excluded.get(kind_of(pattern))
        return None if reason is None else f"does not apply under pattern {pattern!r}: {reason}"


def _of_criterion(criterion: Criterion) -> Method:
    return Method(
        criterion.name,
        partial(by_criterion, criterion),
        criterion.description,
        criterion.source,
        MethodRequirements(
            CALIBRATION if criterion.needs_inputs else "none", gradients=criterion.takes_gradients
        ),
        seeded=criterion.needs_inputs or criterion.name == "random",
        excluded=dict.fromkeys(UNIT_KINDS, "it swaps single weights")
        if criterion.single_weights
        else {},
    )


def _layerwise(criterion: Criterion) -> Method:
    return replace(
        _of_criterion(criterion),
        name=criterion.name + LAYERWISE,
        run=partial(by_criterion, criterion, in_layers=True),
        description=f"{criterion.name} inside every layer, all at the same density",
        excluded={
            **_of_criterion(criterion).excluded,
            N_OF_M: f"all methods rank inside layers there; see {criterion.name}",
        },
        in_all=UNIT_KINDS,  # means over large and small units are hardly comparable across layers
    )


def _imp(name: str, schedule: str | Sequence[PruningStep]) -> Method:
    what = schedule if isinstance(schedule, str) else "user-defined"
    return Method(
        name,
        partial(iterative, name, schedule),
        f"iterative magnitude pruning with fine-tuning, {what} schedule",
        "Han et al. 2015, section 3; Zhu and Gupta 2017; Renda et al. 2020",
        _WITH_LABELS,
        seeded=True,
        path=schedule != "cubic",  # a cubic schedule depends on its last sparsity
        excluded=_TRAINS,
    )


_WITH_CALIBRATION = MethodRequirements(CALIBRATION, gradients=True)
_WITH_LABELS = MethodRequirements(TRAIN, labels=True, gradients=True, training=True)
_TRAINS = dict.fromkeys((N_OF_M, *UNIT_KINDS), "it trains along masks of single weights")
_WHOLE_CHANNELS = dict.fromkeys((WEIGHTS, N_OF_M, BLOCK), "it removes whole channels")
_OTHERS = (
    replace(
        _layerwise(CRITERIA["magnitude"]),
        description="|w| inside every layer, all at the same density",
        source="Han et al. 2015, section 3",
        in_all=None,
    ),
    Method(
        "threshold",
        by_percentile,
        "|w| above a percentile over all layers; ties may change the count",
        "the percentile of common tutorials",
        excluded=dict.fromkeys((N_OF_M, *UNIT_KINDS), "it ranks single weights"),
    ),
    *(
        Method(
            f"structured-l{norm}",
            partial(whole_channels, norm),
            f"whole channels and neurons by L{norm} norm, the same fraction of every layer",
            "Li et al. 2017, section 3.1",
            excluded=dict.fromkeys((N_OF_M, BLOCK), "it removes whole channels"),
        )
        for norm in (1, 2)
    ),
    Method(
        "structured-l1-repaired",
        repaired_channels,
        "structured-l1, then BatchNorm statistics, or biases and norms, corrected on calibration "
        "inputs",
        "Li et al. 2017; this project",
        MethodRequirements(CALIBRATION, changes="statistics"),
        seeded=True,
        excluded=dict.fromkeys((N_OF_M, BLOCK), "it removes whole channels"),
        in_all=(CHANNELS,),
    ),
    Method(
        "batchnorm-scale",
        by_batchnorm_scale,
        "channels of small BatchNorm γ, without training; needs BatchNorm",
        "Liu et al. 2017, section 3",
        excluded=_WHOLE_CHANNELS,
        in_all=(CHANNELS,),
    ),
    Method(
        "neuron-merging",
        merged_channels,
        "structured-l1, and removed channels are read as multiples of the most similar kept ones",
        "Kim et al. 2020, algorithms 1 to 3",
        MethodRequirements(changes="weights"),
        excluded=_WHOLE_CHANNELS,
        in_all=(CHANNELS,),
    ),
    Method(
        "folding",
        folded_channels,
        "channels clustered by k-means on their weights; means replace clusters, with running "
        "variances that fit",
        "Wang et al. 2025: model folding, with its Fold-AR",
        MethodRequirements(changes="weights"),
        seeded=True,
        excluded=_WHOLE_CHANNELS,
        in_all=(CHANNELS,),
    ),
    Method(
        "clustered",
        clustered,
        "magnitude, then one k-means codebook per layer for the kept weights",
        "Han et al. 2015: Deep Compression, section 3",
    ),
    Method(
        EVOLVED,
        evolved,
        "the result of gaprune prune: evolved score tensors over frozen weights",
        "this project",
        _WITH_CALIBRATION,
        seeded=True,
    ),
    Method(
        "edge-popup",
        scores_by_gradient,
        "scores trained on calibration inputs by straight-through gradients, weights frozen",
        "Ramanujan et al. 2020, algorithm 1",
        _WITH_CALIBRATION,
        seeded=True,
    ),
    Method(
        "distilled",
        distilled,
        "iterative magnitude pruning, fine-tuned on calibration inputs with the dense network as "
        "teacher",
        "Hinton et al. 2015, on generated inputs",
        replace(_WITH_CALIBRATION, training=True),
        seeded=True,
        excluded=_TRAINS,
        path=True,
    ),
    _imp(IMP, LINEAR),
    Method(
        "slimming",
        slimmed,
        "channels of small BatchNorm γ removed physically, fine-tuned; needs BatchNorm",
        "Liu et al. 2017, section 3",
        _WITH_LABELS,
        seeded=True,
        excluded=dict.fromkeys(
            (N_OF_M, *UNIT_KINDS), "it counts removed weights of channels, and trains"
        ),
    ),
)


def known_methods() -> dict[str, Method]:
    """Return every method by name: the criteria of `CRITERIA`, the others, then layer-wise ones."""
    others = {method.name: method for method in _OTHERS}
    layerwise = (_layerwise(criterion) for criterion in CRITERIA.values())
    return {
        **{name: _of_criterion(criterion) for name, criterion in CRITERIA.items()},
        **others,
        **{method.name: method for method in layerwise if method.name not in others},
    }


def find_methods(
    names: Sequence[str],
    pattern: str = UNSTRUCTURED,
    schedule: str | Sequence[PruningStep] = LINEAR,
) -> list[Method]:
    """Return methods by name, each once.

    A name is a key of `known_methods()`; `all` for every one of them (criteria inside layers only
    under patterns of units); `imp:SCHEDULE` for iterative pruning along one of `SCHEDULES` (`imp`
    alone follows `schedule`); the name of a plug-in's criterion; or `path/to/file.py:function` for
    a criterion with the signature of `gaprune.criteria.ScoreFunction`.

    Raises:
        InputError: an unknown name (all are listed), an empty list, or a file that is none.
    """
    known = {**known_methods(), IMP: _imp(IMP, schedule)}  # `imp` follows the schedule
    chosen: dict[str, Method] = {}
    for name in names:
        if name == ALL:
            chosen |= {
                key: method
                for key, method in known.items()
                if method.in_all is None or kind_of(pattern) in method.in_all
            }
        elif name in known:
            chosen[name] = known[name]
        elif name.startswith(f"{IMP}:"):
            if (schedule_name := name.removeprefix(f"{IMP}:")) not in SCHEDULES:
                raise unknown_name(f"methods: {IMP}", schedule_name, SCHEDULES)
            chosen[name] = _imp(name, schedule_name)
        elif name.removeprefix(f"{IMP}-") in (*SCHEDULES, "schedule"):  # until version 0.2
            ending = name.removeprefix(f"{IMP}-")
            new = "imp with --schedule" if ending == "schedule" else f"imp:{ending}"
            raise InputError(f"methods: {name!r} is now {new}")
        # a file of the user: its hash tells edited criteria apart
        elif (file := code_file(name)) is not None:
            method = _of_criterion(_user_criterion(name))
            chosen[name] = replace(method, code=content_of(str(file)))
        else:
            chosen[name] = _plugin_method(name, [ALL, *known])
    if not chosen:
        raise InputError(f"methods: name at least one of {', '.join([ALL, *known])}")
    return list(chosen.values())


def added_methods() -> dict[str, Method]:
    """Return the criteria of plug-ins as methods by name; `all` does not include them.

    Warns:
        UserWarning: for each that is broken; it is left out.
    """
    criteria = plugins.load_plugins(plugins.CRITERIA, known_methods(), read_criterion)
    return {name: _of_criterion(criterion) for name, criterion in criteria.items()}


def _plugin_method(name: str, known: Sequence[str]) -> Method:
    """Return the method of a plug-in's criterion, over all layers or inside each."""
    endings = ((name, _of_criterion), (name.removesuffix(LAYERWISE), _layerwise))
    for criterion_name, make in endings:
        for plugin in plugins.installed_plugins(plugins.CRITERIA):
            if plugin.name == criterion_name and criterion_name not in known:
                # imports the plug-in only when it is used
                criterion = read_criterion(plugin, plugins.load_plugin(plugin))
                return replace(make(criterion), code=plugin.package)
    added = plugins.plugin_names(plugins.CRITERIA, known)
    raise unknown_name("methods", name, [*known, *added, "FILE.py:FUNCTION"])


def _user_criterion(spec: str) -> Criterion:
    """Return the user's criterion `path/to/file.py:function`.

    It is not added to `CRITERIA`, which seeds the search.
    """
    function = load_function(spec, "methods")

    def criterion(
        network: DenseNetwork,
        calibration: Tensor | None,
        density: float | None,
        generator: torch.Generator,
    ) -> Tensor:
        # the user's code gets copies, so that it cannot change what other methods use
        model = private_copy(network.model, network.device)
        weights = {name: model.get_parameter(name).detach() for name in network.weights}
        copied = replace(network, model=model, weights=weights)
        inputs = None if calibration is None else calibration.clone()
        scores: Tensor = call_user(
            function, copied, inputs, density, generator, where=f"methods: {spec}"
        )
        return scores

    return Criterion(
        spec,
        criterion,
        needs_inputs=True,
        takes_gradients=False,
        source=spec,
        description="a user-defined criterion",
    )
