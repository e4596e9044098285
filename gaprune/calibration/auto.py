"""Which calibration inputs suit a network: what `--calibration auto` stands for, and what replaces the impossible.

Procedural calibration inputs are enough where they look to the network like its training data. A network with
BatchNorm can be asked (`gaprune.calibration.blend`): if even the best blend of generators stays far from
the statistics that it remembers, inputs are inverted from them. The answer depends on the network
alone, not on the seed of a run, so that `auto` in a saved configuration means the same again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gaprune.calibration.blend import SAMPLE, Keep, Survey
from gaprune.calibration.disk_cache import cache_key, cached
from gaprune.calibration.generators.procedural import GENERATORS
from gaprune.calibration.inversion.batchnorm_statistics import (
    Watch,
    forgetful,
    has_batchnorm,
    has_seen_data,
)
from gaprune.calibration.parse import AUTO, INVERSION, PROCEDURAL, Request, parse_calibration
from gaprune.callbacks import Observer
from gaprune.errors import InputError
from gaprune.models.macs import macs_per_input
from gaprune.models.target import Target

FAR = (
    0.03  # nats per channel: digits are 0.02 from pen drawings, photographs further from any blend
)
LARGE = 1 << 15  # values of one input, and
COSTLY = 1 << 28  # multiply-adds for one, from which what generators look like is kept on disk
_SEED = 0  # of the inputs shown to choose; a run's own generator is left alone

_surveys: WeakKeyDictionary[Target, Survey] = WeakKeyDictionary()


class Choice(NamedTuple):
    """What `auto` stands for, as words behind `--calibration`, and why, as a clause."""

    calibration: tuple[str, ...]
    reason: str

    @property
    def sentence(self) -> str:
        """The choice in words."""
        return f"auto chose {' and '.join(self.calibration)}: {self.reason}"


class Decision(NamedTuple):
    """What is going to be made.

    Attributes:
        request: the calibration inputs asked for, without what this network cannot have.
        choice: what `auto` stood for, or None where nobody wrote it.
        replaced: why impressions are made instead of inverted inputs; None where they are not.
    """

    request: Request
    choice: Choice | None
    replaced: str | None

    def tell(self, observer: Observer) -> None:
        """Say what was decided, where it could have been otherwise."""
        if self.choice is not None and self.choice.calibration != (PROCEDURAL,):
            observer.phase("calibration", self.choice.sentence)
        if self.replaced is not None:
            observer.warning(self.replaced)


def resolve_calibration(calibration: Sequence[str], target: Target) -> Decision:
    """Sort what `--calibration` lists, with `auto` and what is impossible replaced.

    Raises:
        InputError: an empty list, or a name that is no generator and no path.
    """
    request, choice = (
        parse_calibration(calibration, target.inputs),
        None,
    )  # refused before anything is shown
    if AUTO in calibration:
        choice = choose(target)
        request = parse_calibration(_spelt_out(calibration, choice), target.inputs)
    obstacle = _obstacle(target) if request.inversion else None
    if obstacle is None:
        return Decision(request, choice, None)
    replaced = f"calibration inputs: the network cannot be inverted: {obstacle}; impressions are made instead"
    return Decision(replace(request, inversion=False, impressions=True), choice, replaced)


def expand_auto(calibration: Sequence[str], target: Target) -> tuple[str, ...]:
    """Return the list with what `auto` stands for in its place, each word once."""
    return _spelt_out(calibration, choose(target)) if AUTO in calibration else tuple(calibration)


def _spelt_out(calibration: Sequence[str], choice: Choice) -> tuple[str, ...]:
    words = (
        new for word in calibration for new in (choice.calibration if word == AUTO else (word,))
    )
    return tuple(dict.fromkeys(words))


def choose(target: Target) -> Choice:
    """Return what `auto` stands for: inverted inputs where no generator comes near the domain."""
    obstacle = _obstacle(target) or _doubt(target)
    if obstacle is not None:
        return Choice((PROCEDURAL,), obstacle)
    distance = survey_of(target).blend().mismatch
    near = "the nearest blend of generators differs from what its BatchNorms remember by"
    reason = f"{near} {distance:.3f} nats per channel, limit {FAR}"
    return Choice((INVERSION, PROCEDURAL) if distance > FAR else (PROCEDURAL,), reason)


def survey_of(target: Target) -> Survey:
    """Return what a target with BatchNorm sees of all generators; made once for each.

    That takes minutes where inputs or the network are large, and always gives the same, so there it
    is kept.

    Raises:
        InputError: no BatchNorm with running statistics takes part in its forward pass.
    """
    if target not in _surveys:
        own = torch.Generator().manual_seed(_SEED)
        spec, table = target.inputs, GENERATORS[target.inputs.kind]
        _surveys[target] = Survey(target.model, spec, table, own, target.dtype, _keep(target))
    return _surveys[target]


def _keep(target: Target) -> Keep:
    small = math.prod(target.inputs.shape) < LARGE
    if small and macs_per_input(target.model, target.example()) < COSTLY:
        return lambda make: make()
    facts = {
        "what": "moments of generators",
        "network": repr(target.model),
        "inputs": target.inputs.facts(),
        "device": str(target.device),
        "generators": list(GENERATORS[target.inputs.kind]),
        "sample": SAMPLE,
        "seed": _SEED,
    }
    key = cache_key(target.weights_sha256, facts)
    return lambda make: cached(key, make, lambda _: None)  # it only takes longer without


def _obstacle(target: Target) -> str | None:
    """Say why a network cannot be inverted, as a clause; None where it can."""
    if target.inputs.kind == "tokens":
        return "token ids cannot be moved a little"
    if not has_batchnorm(target.model):
        if names := forgetful(target.model):
            return (
                f"its BatchNorm {names[0]!r} keeps no running statistics; build it with "
                "track_running_stats=True and load a checkpoint that holds them"
            )
        return "it has no BatchNorm"
    try:
        _first_pass(target)
    except InputError:
        return "none of its BatchNorms with running statistics takes part in its forward pass"
    return None


def _doubt(target: Target) -> str | None:
    """Say why inversion is not worth trying on a network that has what it takes."""
    if not has_seen_data(target.model):
        return "its BatchNorms have never seen data"
    if not _first_pass(target).requires_grad:
        return "it passes no gradients to its inputs"
    return None


def _first_pass(target: Target) -> Tensor:
    """Return the answer to one input that asks for gradients.

    Raises:
        InputError: no BatchNorm with running statistics took part.
    """
    example = target.example().requires_grad_()
    with torch.enable_grad(), Watch(target.model) as watch:
        outputs: Tensor = target.model(example)
        watch.take()
    return outputs
