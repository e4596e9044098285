"""The table of methods: what each is, what it needs, and how it makes its networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gaprune.comparison.content import content_of
from gaprune.comparison.contest import Contest, Run
from gaprune.comparison.one_shot import (
    by_criterion,
    by_percentile,
    clustered,
    layerwise,
    whole_channels,
)
from gaprune.comparison.rows import Needs
from gaprune.comparison.searched import evolved, scores_by_gradient
from gaprune.comparison.trained import by_own_schedule, distilled, finetuned, slimmed
from gaprune.config import EVOLVED
from gaprune.errors import InputError, unknown_name
from gaprune.probes.plan import requested_rungs
from gaprune.probes.receipt import highest
from gaprune.saliency import SALIENCIES, Network, Saliency
from gaprune.target import private_copy
from gaprune.userfile import call_user, load_function

ALL = "all"
SCHEDULED = "imp-schedule"
PROBES, TRAIN = "probes", "labelled"  # what a method's data may be, beside `none`


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: what the user writes.
        run: from a contest, sparsities and a seed to networks, in the order of the sparsities.
        description: one line for people.
        source: paper, or where it comes from.
        needs: what it must be given; data `probes` stands for the rung of the probes in use.
        seeded: whether another seed gives another row; without it the first seed stands for all.
        path: whether one run passes through all sparsities, each reached from the one before.
        code: hash of the user's own file that it comes from, or empty.
    """

    name: str
    run: Run
    description: str
    source: str
    needs: Needs = field(default_factory=Needs)
    seeded: bool = False
    path: bool = False
    code: str = ""

    @property
    def shows_probes(self) -> bool:
        """Whether it uses the probes that the contest makes; evolution makes the same by itself."""
        return self.needs.data == PROBES and self.name != EVOLVED

    def needs_in(self, contest: Contest) -> Needs:
        """Return what it needs in this comparison: `probes` becomes their rung."""
        if self.needs.data != PROBES:
            return self.needs
        rung = highest(requested_rungs(contest.settings, contest.target))
        return replace(self.needs, data=rung)


def _of(saliency: Saliency) -> Method:
    data = PROBES if saliency.needs_probes else "none"
    needs = Needs(data, gradients=saliency.takes_gradients)
    seeded = saliency.needs_probes or saliency.name == "random"
    run = by_criterion(saliency)
    return Method(saliency.name, run, saliency.description, saliency.source, needs, seeded)


_ON_PROBES = Needs(PROBES, gradients=True)
_TAUGHT = Needs(TRAIN, labels=True, gradients=True, training=True)
_HAN = "Han et al. 2015"
_OTHERS = (
    Method(
        "magnitude-layer",
        layerwise(SALIENCIES["magnitude"]),
        "|w| inside every layer, all at the same density",
        f"{_HAN}, section 3",
    ),
    Method(
        "threshold",
        by_percentile,
        "|w| above a percentile over all layers; ties may change the count",
        "the percentile of the tutorials",
    ),
    Method(
        "structured-l1",
        whole_channels(1),
        "whole channels and neurons by L1 norm, the same part of every layer",
        "Li et al. 2017, section 3.1",
    ),
    Method(
        "structured-l2",
        whole_channels(2),
        "whole channels and neurons by L2 norm, the same part of every layer",
        "Li et al. 2017, section 3.1",
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
        _ON_PROBES,
        seeded=True,
    ),
    Method(
        "edge-popup",
        scores_by_gradient,
        "scores trained on probes by straight-through gradients, weights frozen",
        "Ramanujan et al. 2020, algorithm 1",
        _ON_PROBES,
        seeded=True,
    ),
    Method(
        "distilled",
        distilled,
        "iterative magnitude pruning, fine-tuned on probes towards the dense network's answers",
        "Hinton et al. 2015, on generated inputs",
        Needs(PROBES, gradients=True, training=True),
        seeded=True,
        path=True,
    ),
    Method(
        "imp-direct",
        finetuned("direct"),
        "iterative magnitude pruning, straight to each sparsity, fine-tuned there",
        f"{_HAN}, section 3",
        _TAUGHT,
        seeded=True,
        path=True,
    ),
    Method(
        "imp-linear",
        finetuned("linear"),
        "iterative magnitude pruning in steps of 10 %, fine-tuned after each",
        f"{_HAN}, section 3",
        _TAUGHT,
        seeded=True,
        path=True,
    ),
    Method(
        "imp-long",
        finetuned("long"),
        "the same with twice to three times the epochs and finer steps beyond 90 %",
        f"{_HAN}, section 3",
        _TAUGHT,
        seeded=True,
        path=True,
    ),
    Method(
        "imp-cubic",
        finetuned("cubic"),
        "gradual pruning along a cubic schedule, one run a sparsity",
        "Zhu and Gupta 2017, eq. 1",
        _TAUGHT,
        seeded=True,
    ),
    Method(
        "imp-rewind",
        finetuned("linear", rewind=True),
        "iterative magnitude pruning; kept weights go back to the checkpoint before each training",
        "Frankle et al. 2019; Renda et al. 2020",
        _TAUGHT,
        seeded=True,
        path=True,
    ),
    Method(
        SCHEDULED,
        by_own_schedule,
        "iterative magnitude pruning along your own --schedule",
        f"{_HAN}, section 3",
        _TAUGHT,
        seeded=True,
        path=True,
    ),
    Method(
        "slimming",
        slimmed,
        "channels of small BatchNorm γ removed physically, fine-tuned; needs BatchNorm",
        "Liu et al. 2017, section 3",
        _TAUGHT,
        seeded=True,
    ),
)


def methods() -> dict[str, Method]:
    """Return every method by name: all criteria of `SALIENCIES` as it is now, then the others."""
    return {
        **{name: _of(saliency) for name, saliency in SALIENCIES.items()},
        **{method.name: method for method in _OTHERS},
    }


def find_methods(names: Sequence[str]) -> list[Method]:
    """Return methods by name, each once.

    Args:
        names: keys of `methods()`, `all` for every one of them but
            `imp-schedule`, which needs a schedule, or `path/to/file.py:function` for
            a criterion of the user's own with the signature of `gaprune.saliency.Criterion`.

    Raises:
        InputError: an unknown name (all are listed), an empty list, or a file that is none.
    """
    known = methods()
    found: dict[str, Method] = {}
    for name in names:
        if name == ALL:
            found |= {key: method for key, method in known.items() if key != SCHEDULED}
        elif name in known:
            found[name] = known[name]
        elif ".py:" in name:
            own = _of(own_criterion(name))
            found[name] = replace(own, code=content_of(name.rpartition(":")[0]))
        else:
            raise unknown_name("methods", name, [ALL, *known, "FILE.py:FUNCTION"])
    if not found:
        raise InputError(f"methods: name at least one of {', '.join([ALL, *known])}")
    return list(found.values())


def own_criterion(spec: str) -> Saliency:
    """Return a criterion of the user's own; it stays outside `SALIENCIES`, which seed the search.

    Args:
        spec: `path/to/file.py:function`; the function takes a `gaprune.saliency.Network`, probes
            `[N, …]`, a density and a generator, and returns one score per prunable weight,
            higher means keep.

    Raises:
        InputError: no such function.
    """
    function = load_function(spec, "methods")

    def criterion(
        network: Network, probes: Tensor | None, density: float | None, generator: torch.Generator
    ) -> Tensor:
        model = private_copy(network.model, next(iter(network.weights.values())).device)
        weights = {name: model.get_parameter(name).detach() for name in network.weights}
        own = replace(network, model=model, weights=weights)  # other methods need theirs as it is
        shown = None if probes is None else probes.clone()
        scores: Tensor = call_user(
            function, own, shown, density, generator, where=f"methods: {spec}"
        )
        return scores

    return Saliency(
        spec,
        criterion,
        needs_probes=True,
        takes_gradients=False,
        source=spec,
        description="a criterion of your own",
    )
