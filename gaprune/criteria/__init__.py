"""One-shot criteria: one score per prunable weight of a dense network, higher means keep.

A criterion only scores; `gaprune.masks` turns scores and a budget into masks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gaprune import plugins
from gaprune.criteria.activations import lamp_wanda, lamp_wanda_rows, wanda, wanda_rows
from gaprune.criteria.conditional import conditional, conditional_loss
from gaprune.criteria.correlation import correlation
from gaprune.criteria.expert_outputs import reap
from gaprune.criteria.flow import synflow
from gaprune.criteria.gradients import grasp, snip, taylor
from gaprune.criteria.swaps import MOST_INPUTS, correlation_swaps, swaps
from gaprune.criteria.weights_only import erk, lamp, magnitude, random
from gaprune.errors import GapruneError, InputError, unknown_name
from gaprune.io.user_code import call_user
from gaprune.masks.units import ChannelUnits
from gaprune.models.network import DenseNetwork
from gaprune.pattern_names import CHANNEL, EXPERT

__all__ = [
    "CRITERIA",
    "NUM_INPUTS",
    "Criterion",
    "DenseNetwork",
    "find_criterion",
    "score",
    "score_with",
]

NUM_INPUTS = 256  # calibration inputs that criteria use, unless they say otherwise
PIECE = 1 << 20  # scores that are checked at once
ScoreFunction = Callable[[DenseNetwork, Tensor | None, float | None, torch.Generator], Tensor]
"""`(network, calibration, density, generator)` → scores `[total]`, float32; higher means keep.

`calibration` are inputs `[N, ...]`, or None for criteria that need none; `density` is the fraction
of weights that will stay, or None; `generator` is the only permitted source of random numbers.
"""


@dataclass(frozen=True)
class Criterion:
    """A criterion and where it comes from (paper and equation).

    `needs_inputs` tells whether it runs the network on calibration inputs, `takes_gradients`
    whether it differentiates the network. `most_inputs` is how many calibration inputs it uses,
    `for_repair` replaces `function` where the network is repaired after pruning, `single_weights`
    tells that it cannot rank blocks or channels, and `for_units` scores the units of `pattern`,
    `[units]`. `in_population` tells whether a search starts from its mask also if it is not named;
    else the mask is only one that the result must beat. `by_layers` tells that workers can do parts
    of its work (`gaprune.criteria.layer_tasks`).
    """

    name: str
    function: ScoreFunction
    needs_inputs: bool
    takes_gradients: bool
    source: str
    description: str
    most_inputs: int = NUM_INPUTS
    for_repair: ScoreFunction | None = None
    single_weights: bool = False
    for_units: Callable[[DenseNetwork, Tensor | None, ChannelUnits], Tensor] | None = None
    pattern: str | None = None
    in_population: bool = True
    by_layers: bool = False

    @property
    def repairing(self) -> Criterion:
        """The criterion for a network that is repaired after pruning."""
        return replace(self, function=self.for_repair or self.function)


_OURS = "our own, after Lee et al. 2021, eq. 4"
# Function, needs inputs, takes gradients, source, description. `lamp_wanda` is named "lamp-wanda".
_ROWS: tuple[tuple[ScoreFunction, bool, bool, str, str], ...] = (
    (random, False, False, "none: the control", "uniform random scores"),
    (magnitude, False, False, "Han et al. 2015, section 3", "|w|"),
    (lamp, False, False, "Lee et al. 2021, eq. 4", "w² over the sum of the layer's larger squares"),
    (erk, False, False, "Evci et al. 2020, section 3", "|w|, densities by Erdős–Rényi-kernel"),
    (synflow, False, True, "Tanaka et al. 2020, algorithm 1", "flow through |w|, in 100 rounds"),
    (snip, True, True, "Lee et al. 2019, eq. 5", "|w · gradient|: effect of a gate on the loss"),
    (grasp, True, True, "Wang et al. 2020, eq. 8", "w · Hessian · gradient: gradient flow"),
    (taylor, True, True, "Molchanov et al. 2019, eq. 8", "(w · gradient)², over mini-batches"),
    (wanda, True, False, "Sun et al. 2023, eq. 1", "|w| · norm of its inputs, layers as in LAMP"),
    (wanda_rows, True, False, "Sun et al. 2023, section 3", "Wanda ranked inside every output row"),
    (lamp_wanda, True, False, f"{_OURS} and Zhang et al. 2024, eq. 4", "LAMP counts, Wanda ranks"),
    (lamp_wanda_rows, True, False, f"{_OURS} and Sun et al. 2023", "LAMP counts, Wanda rows rank"),
    (correlation, True, True, "our own, after Hassibi and Stork 1993", "lost output correlation"),
)
CRITERIA: dict[str, Criterion] = {
    (name := row[0].__name__.replace("_", "-")): Criterion(name, *row) for row in _ROWS
}
_SWAPS: tuple[tuple[ScoreFunction, str], ...] = (
    (swaps, "LAMP or lamp-wanda-rows, then swaps in rows against the error of their outputs"),
    (correlation_swaps, "LAMP, then swaps in rows for the correlation of their outputs"),
)
CRITERIA |= {
    (name := function.__name__.replace("_", "-")): Criterion(
        name,
        function,
        needs_inputs=True,
        takes_gradients=False,
        source="SparseSwaps, arXiv 2512.10922",
        description=description,
        most_inputs=MOST_INPUTS,
        for_repair=correlation_swaps,
        single_weights=True,
        # searches from the mask of `correlation-swaps` end lower: mnist-mlp at 0.98 96.1 to 96.2
        # instead of 96.3 %
        in_population=function is swaps,
        by_layers=True,
    )
    for function, description in _SWAPS
}


def _no_weights(name: str, pattern: str, *_: object) -> Tensor:
    raise InputError(f"criterion {name!r}: ranks whole {pattern}s; add --pattern={pattern}")


_UNIT_ROWS = (
    (
        conditional,
        CHANNEL,
        "our own, after Hassibi and Stork 1993, eq. 5",
        "channels: variance that kept ones cannot express, times weights that read it",
    ),
    (
        conditional_loss,
        CHANNEL,
        "the same",
        "the same per multiply-add, scaled to what half of a group does to the outputs",
    ),
    (
        reap,
        EXPERT,
        "Lasby et al. 2025, section 4",
        "experts: gate times norm of the output, mean over tokens routed to it",
    ),
)
# They rank the units of a pattern, and no single weights.
UNIT_CRITERIA = {
    (name := function.__name__.replace("_", "-")): Criterion(
        name,
        partial(_no_weights, name, pattern),
        needs_inputs=True,
        takes_gradients=False,
        source=source,
        description=description,
        for_units=function,
        pattern=pattern,
    )
    for function, pattern, source, description in _UNIT_ROWS
}


def find_criterion(
    name: str, argument: str = "criterion", beside: Collection[str] = ()
) -> Criterion:
    """Return a criterion by name, from `CRITERIA` or a plug-in.

    Raises:
        InputError: a broken plug-in, or an unknown name; the message calls it `argument` and lists
            the names in `beside` too.
    """
    if (built_in := CRITERIA.get(name) or UNIT_CRITERIA.get(name)) is not None:
        return built_in
    criterion = plugins.find_plugin(plugins.CRITERIA, name, read_criterion)
    if criterion is None:
        added = plugins.plugin_names(plugins.CRITERIA, CRITERIA)
        raise unknown_name(argument, name, [*beside, *CRITERIA, *UNIT_CRITERIA, *added])
    return criterion


def read_criterion(plugin: plugins.Plugin, value: Any) -> Criterion:  # noqa: ANN401 - anything
    """Return the criterion of a plug-in: a `Criterion` or a function, otherwise `InputError`."""
    if isinstance(value, Criterion):
        criterion = value
    else:
        text = (getattr(value, "__doc__", None) or plugin.title).strip().splitlines()[0]
        function = plugins.require_function(plugin, value)
        criterion = Criterion(plugin.name, function, True, True, plugin.package, text)
    safe_function = partial(call_user, criterion.repairing.function, where=plugin.title)
    safe = replace(criterion, name=plugin.name, for_repair=criterion.for_repair and safe_function)
    return replace(safe, function=partial(call_user, criterion.function, where=plugin.title))


def score(
    name: str,
    network: DenseNetwork,
    calibration: Tensor | None,
    generator: torch.Generator,
    density: float | None = None,
) -> Tensor:
    """Return the scores of a criterion by name.

    Args:
        name: a key of `CRITERIA`, or the name of a plug-in.
        network: stays unchanged: parameters, buffers, gradients and hooks.
        calibration: inputs `[N, ...]` for the criteria that need them; the others ignore them.
        generator: the only source of random numbers.
        density: the fraction of weights that will stay, in (0, 1]; SynFlow assumes 0.01 otherwise.

    Returns:
        Finite float32 scores `[total]`, comparable inside a layer and between layers.

    Raises:
        InputError: an unknown name, missing calibration inputs, a density outside (0, 1].
        GapruneError: scores are not finite: the network overflows on these calibration inputs.
    """
    return score_with(find_criterion(name), network, calibration, generator, density)


def score_with(
    criterion: Criterion,
    network: DenseNetwork,
    calibration: Tensor | None,
    generator: torch.Generator,
    density: float | None = None,
) -> Tensor:
    """Return the scores of a criterion, checked; for arguments and errors see `score`."""
    name = criterion.name
    if criterion.needs_inputs and (calibration is None or len(calibration) == 0):
        free = ", ".join(key for key, other in CRITERIA.items() if not other.needs_inputs)
        raise InputError(
            f"calibration: criterion {name!r} runs the network on inputs and got none; pass a "
            f"tensor [N, ...], or use a criterion that needs no inputs: {free}"
        )
    if density is not None and not 0 < density <= 1:
        raise InputError(
            f"density: must be above 0 and at most 1 (the fraction of weights kept), got {density}"
        )
    scores: object = criterion.function(network, calibration, density, generator)
    if not isinstance(scores, Tensor) or scores.shape != (network.layout.total,):
        actual = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise InputError(
            f"criterion {name!r}: must return one score for each of the {network.layout.total} "
            f"prunable weights, a tensor [{network.layout.total}], got {actual}"
        )
    # layer by layer, so that the message can name the layer
    for layer, values in network.layout.split(scores).items():
        pieces = values.reshape(-1).split(PIECE)  # of whole layers, temporary results are large
        if bad := sum(int((~piece.isfinite()).count_nonzero()) for piece in pieces):
            raise GapruneError(
                f"criterion {name!r}: {bad} of {values.numel()} scores of layer {layer!r} are not "
                "finite, the network overflows; use other calibration inputs or another criterion"
            )
    return scores.float()
