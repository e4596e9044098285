"""How much of each generator a run shows, and which one is set aside to judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from gaprune.calibration.affinity import affinities
from gaprune.calibration.auto import survey_of
from gaprune.calibration.generators.draws import InputGenerator
from gaprune.calibration.generators.mixture import mix_generators, share_out
from gaprune.calibration.generators.procedural import GENERATORS
from gaprune.calibration.generators.token_sequences import LIKE_TEXT, UNRANKED, is_ranked
from gaprune.calibration.parse import AUTO, PROCEDURAL, Request
from gaprune.models.target import Target


class Weights(NamedTuple):
    """Generators and their parts.

    Attributes:
        shares: generator → share of what the search is shown; they add up to 1. Empty where it
            is shown none.
        judge: the generator or file of the validation inputs, or None where a part of a file is held out.
        mutual_information: mutual information of each generator in nats, best first; empty where nobody
            asked for it.
    """

    shares: dict[str, float]
    judge: str | None
    mutual_information: dict[str, float]


def weigh(
    target: Target, request: Request, validation: str, generator: torch.Generator, *, held_out: bool
) -> Weights:
    """Let the network weigh the generators of its kind.

    What is inverted from BatchNorm starts from, and stands beside, the blend that comes nearest to
    the remembered statistics. Otherwise the teacher's mutual information decides; but where the
    order of a vocabulary is known, `topics` are shown and `zipf-bursts` judge, since token networks
    often answer with vectors that are no classes.

    Args:
        target: the network.
        request: what the search is shown.
        validation: what the user asked to judge by.
        generator: draws the inputs that are weighed.
        held_out: whether a part of a file judges.
    """
    if request.inversion:
        return _by_statistics(target, request, validation, held_out=held_out)
    mutual_information: dict[str, float] = {}
    if is_ranked(target.inputs):
        likely = dict.fromkeys(LIKE_TEXT, 0.0)
    elif request.names or request.impressions or not held_out:
        table = _choices(target)
        likely = mutual_information = affinities(
            target.model, target.inputs, table, generator, target.dtype
        )
    else:
        likely = {}
    judge = None if held_out else _judge(validation, likely, request)
    return Weights(mix_generators(request.names, likely, judge), judge, mutual_information)


def _choices(target: Target) -> dict[str, InputGenerator]:
    """Return the generators among which the network chooses, by name."""
    table = GENERATORS[target.inputs.kind]
    return {name: table[name] for name in UNRANKED} if target.inputs.kind == "tokens" else table


def _by_statistics(target: Target, request: Request, validation: str, *, held_out: bool) -> Weights:
    survey, table = survey_of(target), GENERATORS[target.inputs.kind]
    free = [name for name in table if name != validation] or list(table)
    found = survey.blend(free)
    shares = share_out(request.names, found.shares)
    if held_out or validation != AUTO:
        return Weights(shares, None if held_out else validation, {})
    nearest = sorted(found.alone, key=lambda name: found.alone[name])
    judge = _best_outside(nearest, shares)
    if judge is None and len(free) > 1 and not set(free) <= set(request.names):
        least = min(found.shares, key=lambda name: found.shares[name])
        shares = share_out(request.names, survey.blend([x for x in free if x != least]).shares)
        judge = _best_outside(nearest, shares)
    return Weights(shares, judge or nearest[0], {})  # all are in the search: another seed must do


def _best_outside(ranked: Sequence[str], shares: Mapping[str, float]) -> str | None:
    return next((name for name in ranked if name not in shares), None)


def _judge(
    validation: str, mutual_information: Mapping[str, float], request: Request
) -> str | None:
    """Name the generator that judges: the runner-up, or the best one that the search lacks."""
    if validation != AUTO:
        return validation
    rest = [name for name in mutual_information if name not in request.names]
    if not rest:
        return next(iter(mutual_information))  # all are in the search: another seed must do
    runner_up = len(rest) > 1 and (PROCEDURAL in request.names or not request.names)
    return rest[1] if runner_up else rest[0]
