"""Criterion: how much each prunable weight matters, as one score per weight (higher means keep)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gaprune import plugins
from gaprune.criteria.activations import lamp_wanda, lamp_wanda_rows, wanda, wanda_rows
from gaprune.criteria.correlation import correlation
from gaprune.criteria.flow import synflow
from gaprune.criteria.gradients import grasp, snip, taylor
from gaprune.criteria.network import ScoreFunction
from gaprune.criteria.weights_only import erk, lamp, magnitude, random
from gaprune.errors import GapruneError, InputError, unknown_name
from gaprune.io.user_code import call_user
from gaprune.models.network import DenseNetwork

__all__ = [
    "CRITERIA",
    "DenseNetwork",
    "ScoreFunction",
    "find_criterion",
    "read_criterion",
    "score",
    "score_with",
]


@dataclass(frozen=True)
class Criterion:
    """One criterion and where it comes from.

    Attributes:
        name: its key in `CRITERIA`.
        criterion: the function.
        needs_inputs: whether it shows inputs to the network.
        takes_gradients: whether it differentiates the network.
        source: paper and equation.
        description: one line for people.
    """

    name: str
    criterion: ScoreFunction
    needs_inputs: bool
    takes_gradients: bool
    source: str
    description: str


CRITERIA: dict[str, Criterion] = {
    criterion.name: criterion
    for criterion in (
        Criterion("random", random, False, False, "none: the control", "uniform random scores"),
        Criterion("magnitude", magnitude, False, False, "Han et al. 2015, section 3", "|w|"),
        Criterion(
            "lamp",
            lamp,
            False,
            False,
            "Lee et al. 2021, eq. 4",
            "w² over the squares of the layer's weights that are at least as large",
        ),
        Criterion(
            "erk",
            erk,
            False,
            False,
            "Evci et al. 2020, section 3",
            "magnitude inside layers whose densities follow Erdős–Rényi-kernel",
        ),
        Criterion(
            "synflow",
            synflow,
            False,
            True,
            "Tanaka et al. 2020, algorithm 1",
            "synaptic flow through the absolute weights, pruned in 100 rounds",
        ),
        Criterion(
            "snip",
            snip,
            True,
            True,
            "Lee et al. 2019, eq. 5",
            "|w · gradient|: how strongly a gate on the weight moves the loss",
        ),
        Criterion(
            "grasp",
            grasp,
            True,
            True,
            "Wang et al. 2020, eq. 8",
            "w · Hessian · gradient: the weights that keep the gradient flowing",
        ),
        Criterion(
            "taylor",
            taylor,
            True,
            True,
            "Molchanov et al. 2019, eq. 8",
            "(w · gradient)², averaged over mini-batches",
        ),
        Criterion(
            "wanda",
            wanda,
            True,
            False,
            "Sun et al. 2023, eq. 1",
            "|w| · norm of the inputs it multiplies, layers balanced as in LAMP",
        ),
        Criterion(
            "wanda-rows",
            wanda_rows,
            True,
            False,
            "Sun et al. 2023, section 3",
            "the same products ranked inside every output row, all of the same density",
        ),
        Criterion(
            "lamp-wanda",
            lamp_wanda,
            True,
            False,
            "our own, of Lee et al. 2021, eq. 4 and Zhang et al. 2024, eq. 4",
            "LAMP says how many weights a layer keeps, |w| · root of the inputs' norm which",
        ),
        Criterion(
            "lamp-wanda-rows",
            lamp_wanda_rows,
            True,
            False,
            "our own, of Lee et al. 2021, eq. 4 and Sun et al. 2023, section 3",
            "LAMP says how many weights a layer keeps, ranks inside every output row which",
        ),
        Criterion(
            "correlation",
            correlation,
            True,
            True,
            "our own, after Hassibi and Stork 1993",
            "what its removal costs the correlation of its channel's output with the dense one",
        ),
    )
}


def find_criterion(
    name: str, argument: str = "criterion", beside: Collection[str] = ()
) -> Criterion:
    """Return a criterion by name: our own, or a plug-in's.

    Args:
        name: a key of `CRITERIA`, or what an installed package adds.
        argument: what the caller calls it, for the message.
        beside: names that the caller knows as well.

    Raises:
        InputError: an unknown name, or a plug-in that is broken.
    """
    if name in CRITERIA:
        return CRITERIA[name]
    found = plugins.find_plugin(plugins.CRITERIA, name, read_criterion)
    if found is None:
        added = plugins.plugin_names(plugins.CRITERIA, CRITERIA)
        raise unknown_name(argument, name, [*beside, *CRITERIA, *added])
    return found


def read_criterion(plugin: plugins.Plugin, held: Any) -> Criterion:  # noqa: ANN401 - whatever it is
    """Return the criterion that a plug-in is: a `Criterion`, or a function with its signature.

    Raises:
        InputError: it is neither.
    """
    criterion: Criterion
    if isinstance(held, Criterion):
        criterion = held
    else:
        text = (getattr(held, "__doc__", None) or plugin.title).strip().splitlines()[0]
        function = plugins.require_function(plugin, held)
        criterion = Criterion(plugin.name, function, True, True, plugin.package, text)
    guarded = partial(call_user, criterion.criterion, where=plugin.title)
    return replace(criterion, name=plugin.name, criterion=guarded)


def score(
    name: str,
    network: DenseNetwork,
    calibration: Tensor | None,
    generator: torch.Generator,
    density: float | None = None,
) -> Tensor:
    """Return the scores of one criterion.

    Args:
        name: a key of `CRITERIA`, or what a plug-in adds.
        network: stays as it is, parameters, buffers, gradients and hooks.
        calibration inputs: inputs `[N, ...]` for the criteria that need them; ignored by the others.
        generator: the only source of randomness.
        density: the fraction of weights that will stay, in (0, 1]; only SynFlow looks at it, and
            ranks for a density of 0.01 without it.

    Returns:
        Finite float32 scores `[total]`, comparable inside a layer and between layers.

    Raises:
        InputError: an unknown name, calibration inputs needed and not given, a density outside (0, 1].
        GapruneError: the network gives scores that are not finite (it overflows on these calibration inputs).
    """
    return score_with(find_criterion(name), network, calibration, generator, density)


def score_with(
    criterion: Criterion,
    network: DenseNetwork,
    calibration: Tensor | None,
    generator: torch.Generator,
    density: float | None = None,
) -> Tensor:
    """Return the scores of a criterion, also of one that is not in `CRITERIA`; see `score`.

    Raises:
        InputError: as `score`; or the criterion returns no tensor `[total]`.
    """
    name = criterion.name
    if criterion.needs_inputs and (calibration is None or len(calibration) == 0):
        free = ", ".join(key for key, one in CRITERIA.items() if not one.needs_inputs)
        raise InputError(
            f"calibration inputs: criterion {name!r} shows inputs to the network and got none; "
            f"pass a tensor [N, ...], or use a criterion that needs no calibration inputs: {free}"
        )
    if density is not None and not 0 < density <= 1:
        raise InputError(
            f"density: must be above 0 and at most 1 (the fraction of weights kept), got {density}"
        )
    scores: object = criterion.criterion(network, calibration, density, generator)
    if not isinstance(scores, Tensor) or scores.shape != (network.layout.total,):
        came = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise InputError(
            f"criterion {name!r}: must return one score for each of the {network.layout.total} "
            f"prunable weights, a tensor [{network.layout.total}], got {came}"
        )
    for layer, values in network.layout.split(scores).items():
        bad = int((~values.isfinite()).count_nonzero())
        if bad:
            raise GapruneError(
                f"criterion {name!r}: {bad} of {values.numel()} scores of layer {layer!r} are not "
                f"finite, the network overflows; use other calibration inputs or another criterion"
            )
    return scores.float()
