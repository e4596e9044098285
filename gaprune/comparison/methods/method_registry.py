"""The table of methods: what each is, what it needs, and how it makes its networks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gaprune import plugins
from gaprune.calibration.calibration_set import requested_data_levels
from gaprune.calibration.provenance import highest_level
from gaprune.comparison.context import ComparisonContext, MethodFunction
from gaprune.comparison.methods.one_shot import (
    by_criterion,
    by_percentile,
    clustered,
    layerwise,
    whole_channels,
)
from gaprune.comparison.methods.own_criterion import own_criterion
from gaprune.comparison.methods.searched import evolved, scores_by_gradient
from gaprune.comparison.methods.trained import by_own_schedule, distilled, finetuned, slimmed
from gaprune.comparison.ranking import BLOCK, OF_UNITS, QUOTA, kind_of
from gaprune.comparison.rows import MethodRequirements
from gaprune.config import EVOLVED
from gaprune.criteria import CRITERIA, Criterion, read_criterion
from gaprune.errors import InputError, unknown_name
from gaprune.io.file_hash import content_of
from gaprune.pattern_names import UNSTRUCTURED

ALL = "all"
LAYERWISE = "-layer"  # marks a criterion ranked inside layers of equal density
SCHEDULED = "imp-schedule"
CALIBRATION, TRAIN = "calibration", "labelled"  # what a method's data may be, beside `none`


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: what the user writes.
        run: from a contest, sparsities and a seed to networks, in the order of the sparsities.
        description: one line for people.
        source: paper, or where it comes from.
        needs: what it must be given; data `calibration` stands for the level of the calibration inputs in use.
        seeded: whether another seed gives another row; without it the first seed stands for all.
        path: whether one run passes through all sparsities, each reached from the one before.
        code: hash of the user's own file that it comes from, or empty.
        placeless: kind of pattern → why the method has no place under it.
        usual: kinds of patterns under which `all` names it; None: under every one.
    """

    name: str
    run: MethodFunction
    description: str
    source: str
    needs: MethodRequirements = field(default_factory=MethodRequirements)
    seeded: bool = False
    path: bool = False
    code: str = ""
    placeless: Mapping[str, str] = field(default_factory=dict)
    usual: Collection[str] | None = None

    @property
    def uses_calibration(self) -> bool:
        """Whether it uses the calibration inputs that the contest makes; evolution makes the same by itself."""
        return self.needs.data == CALIBRATION and self.name != EVOLVED

    def needs_in(self, context: ComparisonContext) -> MethodRequirements:
        """Return what it needs in this comparison: `calibration` becomes their level."""
        if self.needs.data != CALIBRATION:
            return self.needs
        level = highest_level(requested_data_levels(context.settings, context.target))
        return replace(self.needs, data=level)

    def placeless_in(self, context: ComparisonContext) -> str | None:
        """Say why it has no place under the pattern of this comparison, or return None."""
        why = self.placeless.get(context.kind)
        pattern = context.settings.pattern
        return None if why is None else f"no place under pattern {pattern!r}: {why}"


def _of(criterion: Criterion) -> Method:
    data = CALIBRATION if criterion.needs_inputs else "none"
    needs = MethodRequirements(data, gradients=criterion.takes_gradients)
    seeded = criterion.needs_inputs or criterion.name == "random"
    run = by_criterion(criterion)
    return Method(criterion.name, run, criterion.description, criterion.source, needs, seeded)


def _in_layers(criterion: Criterion) -> Method:
    """Return the same inside every layer; means over large and small units hardly compare."""
    whole = _of(criterion)
    return replace(
        whole,
        name=whole.name + LAYERWISE,
        run=layerwise(criterion),
        description=f"{whole.name} inside every layer, all at the same density",
        placeless={QUOTA: f"all methods rank inside layers there; see {whole.name}"},
        usual=OF_UNITS,
    )


_ON_CALIBRATION = MethodRequirements(CALIBRATION, gradients=True)
_TAUGHT = MethodRequirements(TRAIN, labels=True, gradients=True, training=True)
_HAN = "Han et al. 2015"
_SINGLE = "it ranks single weights"
_TRAINS = "it trains along masks of single weights"
_NO_UNITS = dict.fromkeys((QUOTA, *OF_UNITS), _SINGLE)
_UNTRAINED = dict.fromkeys((QUOTA, *OF_UNITS), _TRAINS)
_ONLY_CHANNELS = dict.fromkeys((QUOTA, BLOCK), "it removes whole channels")
_OWN_COUNT = "it removes channels until so many weights are gone, and trains"
_OTHERS = (
    Method(
        "magnitude-layer",
        layerwise(CRITERIA["magnitude"]),
        "|w| inside every layer, all at the same density",
        f"{_HAN}, section 3",
        placeless={QUOTA: "all methods rank inside layers there; see magnitude"},
    ),
    Method(
        "threshold",
        by_percentile,
        "|w| above a percentile over all layers; ties may change the count",
        "the percentile of the tutorials",
        placeless=_NO_UNITS,
    ),
    Method(
        "structured-l1",
        whole_channels(1),
        "whole channels and neurons by L1 norm, the same part of every layer",
        "Li et al. 2017, section 3.1",
        placeless=_ONLY_CHANNELS,
    ),
    Method(
        "structured-l2",
        whole_channels(2),
        "whole channels and neurons by L2 norm, the same part of every layer",
        "Li et al. 2017, section 3.1",
        placeless=_ONLY_CHANNELS,
    ),
    Method(
        "clustered",
        clustered,
        "magnitude, then one k-means codebook a layer for the weights that stay",
        f"{_HAN}: Deep Compression, section 3",
    ),
    Method(
        EVOLVED,
        evolved,
        "what gaprune prune finds: evolved score tensors over frozen weights",
        "this project",
        _ON_CALIBRATION,
        seeded=True,
    ),
    Method(
        "edge-popup",
        scores_by_gradient,
        "scores trained on calibration inputs by straight-through gradients, weights frozen",
        "Ramanujan et al. 2020, algorithm 1",
        _ON_CALIBRATION,
        seeded=True,
    ),
    Method(
        "distilled",
        distilled,
        "iterative magnitude pruning, fine-tuned on calibration inputs towards the dense network's answers",
        "Hinton et al. 2015, on generated inputs",
        MethodRequirements(CALIBRATION, gradients=True, training=True),
        seeded=True,
        placeless=_UNTRAINED,
        path=True,
    ),
    Method(
        "imp-direct",
        finetuned("direct"),
        "iterative magnitude pruning, straight to each sparsity, fine-tuned there",
        f"{_HAN}, section 3",
        _TAUGHT,
        seeded=True,
        placeless=_UNTRAINED,
        path=True,
    ),
    Method(
        "imp-linear",
        finetuned("linear"),
        "iterative magnitude pruning in steps of 10 %, fine-tuned after each",
        f"{_HAN}, section 3",
        _TAUGHT,
        seeded=True,
        placeless=_UNTRAINED,
        path=True,
    ),
    Method(
        "imp-long",
        finetuned("long"),
        "the same with twice to three times the epochs and finer steps beyond 90 %",
        f"{_HAN}, section 3",
        _TAUGHT,
        seeded=True,
        placeless=_UNTRAINED,
        path=True,
    ),
    Method(
        "imp-cubic",
        finetuned("cubic"),
        "gradual pruning along a cubic schedule, one run a sparsity",
        "Zhu and Gupta 2017, eq. 1",
        _TAUGHT,
        seeded=True,
        placeless=_UNTRAINED,
    ),
    Method(
        "imp-rewind",
        finetuned("linear", rewind=True),
        "iterative magnitude pruning; kept weights go back to the checkpoint before each training",
        "Frankle et al. 2019; Renda et al. 2020",
        _TAUGHT,
        seeded=True,
        placeless=_UNTRAINED,
        path=True,
    ),
    Method(
        SCHEDULED,
        by_own_schedule,
        "iterative magnitude pruning along your own --schedule",
        f"{_HAN}, section 3",
        _TAUGHT,
        seeded=True,
        placeless=_UNTRAINED,
        path=True,
    ),
    Method(
        "slimming",
        slimmed,
        "channels of small BatchNorm γ removed physically, fine-tuned; needs BatchNorm",
        "Liu et al. 2017, section 3",
        _TAUGHT,
        seeded=True,
        placeless=dict.fromkeys((QUOTA, *OF_UNITS), _OWN_COUNT),
    ),
)


def methods() -> dict[str, Method]:
    """Return every method by name: all criteria of `CRITERIA` as it is now, then the others.

    Criteria inside layers come last, but for magnitude's.
    """
    layered = (_in_layers(criterion) for criterion in CRITERIA.values())
    own = {method.name: method for method in _OTHERS}
    return {
        **{name: _of(criterion) for name, criterion in CRITERIA.items()},
        **own,
        **{method.name: method for method in layered if method.name not in own},
    }


def find_methods(names: Sequence[str], pattern: str = UNSTRUCTURED) -> list[Method]:
    """Return methods by name, each once.

    Args:
        names: keys of `methods()`, `all` for every one of them but
            `imp-schedule`, which needs a schedule, and criteria inside layers where single weights
            are ranked; the name of a plug-in's criterion; or `path/to/file.py:function` for
            a criterion of the user's own with the signature of `gaprune.criteria.ScoreFunction`.
        pattern: of the comparison.

    Raises:
        InputError: an unknown name (all are listed), an empty list, or a file that is none.
    """
    known = methods()
    found: dict[str, Method] = {}
    for name in names:
        if name == ALL:
            found |= {
                key: method
                for key, method in known.items()
                if key != SCHEDULED and (method.usual is None or kind_of(pattern) in method.usual)
            }
        elif name in known:
            found[name] = known[name]
        elif ".py:" in name:
            own = _of(own_criterion(name))
            found[name] = replace(own, code=content_of(name.rpartition(":")[0]))
        else:
            found[name] = _added(name, [ALL, *known])
    if not found:
        raise InputError(f"methods: name at least one of {', '.join([ALL, *known])}")
    return list(found.values())


def added_methods() -> dict[str, Method]:
    """Return the criteria of plug-ins as methods by name; `all` does not name them.

    Warns:
        UserWarning: of each that is broken; it is left out.
    """
    found = plugins.load_plugins(plugins.CRITERIA, methods(), read_criterion)
    return {name: _of(criterion) for name, criterion in found.items()}


def _added(name: str, known: Sequence[str]) -> Method:
    """Return the method of a plug-in's criterion, over all layers or inside each."""
    for own, make in ((name, _of), (name.removesuffix(LAYERWISE), _in_layers)):
        for plugin in plugins.installed_plugins(plugins.CRITERIA):
            if plugin.name == own and own not in known:
                criterion = read_criterion(plugin, plugins.load_plugin(plugin))
                return replace(make(criterion), code=plugin.package)
    added = plugins.plugin_names(plugins.CRITERIA, known)
    raise unknown_name("methods", name, [*known, *added, "FILE.py:FUNCTION"])
