"""Saliency: how much each prunable weight matters, as one score per weight (higher means keep)."""

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
from gaprune.criteria.network import Criterion, Network
from gaprune.criteria.weights_only import erk, lamp, magnitude, random
from gaprune.errors import GapruneError, InputError, unknown_name
from gaprune.io.user_code import call_user

__all__ = [
    "SALIENCIES",
    "Criterion",
    "Network",
    "Saliency",
    "find_saliency",
    "read_saliency",
    "score",
    "score_with",
]


@dataclass(frozen=True)
class Saliency:
    """One criterion and where it comes from.

    Attributes:
        name: its key in `SALIENCIES`.
        criterion: the function.
        needs_probes: whether it shows inputs to the network.
        takes_gradients: whether it differentiates the network.
        source: paper and equation.
        description: one line for people.
    """

    name: str
    criterion: Criterion
    needs_probes: bool
    takes_gradients: bool
    source: str
    description: str


SALIENCIES: dict[str, Saliency] = {
    saliency.name: saliency
    for saliency in (
        Saliency("random", random, False, False, "none: the control", "uniform random scores"),
        Saliency("magnitude", magnitude, False, False, "Han et al. 2015, section 3", "|w|"),
        Saliency(
            "lamp",
            lamp,
            False,
            False,
            "Lee et al. 2021, eq. 4",
            "w² over the squares of the layer's weights that are at least as large",
        ),
        Saliency(
            "erk",
            erk,
            False,
            False,
            "Evci et al. 2020, section 3",
            "magnitude inside layers whose densities follow Erdős–Rényi-kernel",
        ),
        Saliency(
            "synflow",
            synflow,
            False,
            True,
            "Tanaka et al. 2020, algorithm 1",
            "synaptic flow through the absolute weights, pruned in 100 rounds",
        ),
        Saliency(
            "snip",
            snip,
            True,
            True,
            "Lee et al. 2019, eq. 5",
            "|w · gradient|: how strongly a gate on the weight moves the loss",
        ),
        Saliency(
            "grasp",
            grasp,
            True,
            True,
            "Wang et al. 2020, eq. 8",
            "w · Hessian · gradient: the weights that keep the gradient flowing",
        ),
        Saliency(
            "taylor",
            taylor,
            True,
            True,
            "Molchanov et al. 2019, eq. 8",
            "(w · gradient)², averaged over mini-batches",
        ),
        Saliency(
            "wanda",
            wanda,
            True,
            False,
            "Sun et al. 2023, eq. 1",
            "|w| · norm of the inputs it multiplies, layers balanced as in LAMP",
        ),
        Saliency(
            "wanda-rows",
            wanda_rows,
            True,
            False,
            "Sun et al. 2023, section 3",
            "the same products ranked inside every output row, all of the same density",
        ),
        Saliency(
            "lamp-wanda",
            lamp_wanda,
            True,
            False,
            "our own, of Lee et al. 2021, eq. 4 and Zhang et al. 2024, eq. 4",
            "LAMP says how many weights a layer keeps, |w| · root of the inputs' norm which",
        ),
        Saliency(
            "lamp-wanda-rows",
            lamp_wanda_rows,
            True,
            False,
            "our own, of Lee et al. 2021, eq. 4 and Sun et al. 2023, section 3",
            "LAMP says how many weights a layer keeps, ranks inside every output row which",
        ),
        Saliency(
            "correlation",
            correlation,
            True,
            True,
            "our own, after Hassibi and Stork 1993",
            "what its removal costs the correlation of its channel's output with the dense one",
        ),
    )
}


def find_saliency(name: str, argument: str = "saliency", beside: Collection[str] = ()) -> Saliency:
    """Return a criterion by name: our own, or a plug-in's.

    Args:
        name: a key of `SALIENCIES`, or what an installed package adds.
        argument: what the caller calls it, for the message.
        beside: names that the caller knows as well.

    Raises:
        InputError: an unknown name, or a plug-in that is broken.
    """
    if name in SALIENCIES:
        return SALIENCIES[name]
    found = plugins.find(plugins.SALIENCIES, name, read_saliency)
    if found is None:
        added = plugins.names(plugins.SALIENCIES, SALIENCIES)
        raise unknown_name(argument, name, [*beside, *SALIENCIES, *added])
    return found


def read_saliency(plugin: plugins.Plugin, held: Any) -> Saliency:  # noqa: ANN401 - whatever it is
    """Return the criterion that a plug-in is: a `Saliency`, or a function with its signature.

    Raises:
        InputError: it is neither.
    """
    saliency: Saliency
    if isinstance(held, Saliency):
        saliency = held
    else:
        text = (getattr(held, "__doc__", None) or plugin.title).strip().splitlines()[0]
        function = plugins.called(plugin, held)
        saliency = Saliency(plugin.name, function, True, True, plugin.package, text)
    guarded = partial(call_user, saliency.criterion, where=plugin.title)
    return replace(saliency, name=plugin.name, criterion=guarded)


def score(
    name: str,
    network: Network,
    probes: Tensor | None,
    generator: torch.Generator,
    density: float | None = None,
) -> Tensor:
    """Return the scores of one criterion.

    Args:
        name: a key of `SALIENCIES`, or what a plug-in adds.
        network: stays as it is, parameters, buffers, gradients and hooks.
        probes: inputs `[N, ...]` for the criteria that need them; ignored by the others.
        generator: the only source of randomness.
        density: the fraction of weights that will stay, in (0, 1]; only SynFlow looks at it, and
            ranks for a density of 0.01 without it.

    Returns:
        Finite float32 scores `[total]`, comparable inside a layer and between layers.

    Raises:
        InputError: an unknown name, probes needed and not given, a density outside (0, 1].
        GapruneError: the network gives scores that are not finite (it overflows on these probes).
    """
    return score_with(find_saliency(name), network, probes, generator, density)


def score_with(
    saliency: Saliency,
    network: Network,
    probes: Tensor | None,
    generator: torch.Generator,
    density: float | None = None,
) -> Tensor:
    """Return the scores of a criterion, also of one that is not in `SALIENCIES`; see `score`.

    Raises:
        InputError: as `score`; or the criterion returns no tensor `[total]`.
    """
    name = saliency.name
    if saliency.needs_probes and (probes is None or len(probes) == 0):
        free = ", ".join(key for key, one in SALIENCIES.items() if not one.needs_probes)
        raise InputError(
            f"probes: saliency {name!r} shows inputs to the network and got none; "
            f"pass a tensor [N, ...], or use a saliency that needs no probes: {free}"
        )
    if density is not None and not 0 < density <= 1:
        raise InputError(
            f"density: must be above 0 and at most 1 (the fraction of weights kept), got {density}"
        )
    scores: object = saliency.criterion(network, probes, density, generator)
    if not isinstance(scores, Tensor) or scores.shape != (network.layout.total,):
        came = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise InputError(
            f"saliency {name!r}: must return one score for each of the {network.layout.total} "
            f"prunable weights, a tensor [{network.layout.total}], got {came}"
        )
    for layer, values in network.layout.split(scores).items():
        bad = int((~values.isfinite()).count_nonzero())
        if bad:
            raise GapruneError(
                f"saliency {name!r}: {bad} of {values.numel()} scores of layer {layer!r} are not "
                f"finite, the network overflows; use other probes or another saliency"
            )
    return scores.float()
