"""Which generators make the calibration inputs, in which shares, and which one the validation.

Without BatchNorm the outputs of the teacher decide, by the mutual information of input and class
(`domain_fit`). On the reference networks it orders the generators as the accuracy of masks searched
with them does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from gaprune.calibration.auto import information_of_generators, is_large, mixture_fitter
from gaprune.calibration.domain_fit import mutual_information, sample_count
from gaprune.calibration.generators.mixture import MIN_SHARE
from gaprune.calibration.generators.procedural import GENERATORS
from gaprune.calibration.generators.token_sequences import UNRANKED, is_ranked, like_text
from gaprune.calibration.parse import AUTO, PROCEDURAL, CalibrationRequest
from gaprune.models.target import Target

TEMPERATURE = 0.15  # nats: a generator this far behind the best gets 1/e of its share


class GeneratorChoice(NamedTuple):
    """The generators of a run.

    Attributes:
        shares: generator → share of the search inputs; they add up to 1. Empty if none is used.
        validation: the generator or file of the validation inputs; None holds out a part of a file.
        mutual_information: of each generator in nats, best first; empty if it is not measured.
    """

    shares: dict[str, float]
    validation: str | None
    mutual_information: dict[str, float]


def choose_generators(
    target: Target,
    request: CalibrationRequest,
    validation: str,
    generator: torch.Generator,
    *,
    held_out: bool,
) -> GeneratorChoice:
    """Choose shares for the generators, and the generator of the validation inputs.

    With inversion, the mixture that comes nearest to the stored BatchNorm statistics is used: as
    starting points, and beside the inverted inputs. Otherwise the mutual information decides.
    Exception: if the rank order of a vocabulary is known, `topics` are used for the search, for an
    English one with as many `sentences`, and `zipf-bursts` for validation, because token networks
    often output embeddings, not classes.

    `validation` is the value of `--validation`; `held_out` says that the validation inputs are a
    part of a file. `generator` draws the inputs on which the mutual information is measured.
    """
    if request.inversion:
        return _by_statistics(target, request, validation, held_out=held_out)
    information: dict[str, float] = {}
    candidates: Mapping[str, float] = {}
    if is_ranked(target.inputs):
        candidates = dict.fromkeys(like_text(target.inputs), 0.0)
    elif request.names or request.impressions or not held_out:
        table = GENERATORS[target.inputs.kind]
        if target.inputs.kind == "tokens":
            # `topics` is left out: without ranks it leads to worse masks.
            table = {name: table[name] for name in UNRANKED}
        if not is_large(target):
            count = sample_count(target, table)
            candidates = information = mutual_information(target, table, generator, count)
        elif not _is_stated(request, validation, held_out=held_out):
            # from a seed of its own, so that it is measured once and not for every run
            candidates = information = information_of_generators(target, table)
    judge = None if held_out else _validation_generator(validation, candidates, request)
    return GeneratorChoice(shares_by_name(request.names, candidates, judge), judge, information)


def _by_statistics(
    target: Target, request: CalibrationRequest, validation: str, *, held_out: bool
) -> GeneratorChoice:
    """Take the shares of the fitted mixture, and validate on the nearest generator outside it."""
    if _is_stated(request, validation, held_out=held_out):
        return GeneratorChoice(equal_parts(request.names, {}), None if held_out else validation, {})
    fitter, table = mixture_fitter(target), GENERATORS[target.inputs.kind]
    # A generator that validates must not be used by the search.
    free = [name for name in table if name != validation] or list(table)
    fit = fitter.fit(free)
    shares = equal_parts(request.names, fit.shares)
    if held_out or validation != AUTO:
        return GeneratorChoice(shares, None if held_out else validation, {})
    nearest = sorted(fit.single_divergence, key=lambda name: fit.single_divergence[name])
    judge = next((name for name in nearest if name not in shares), None)
    if judge is None and len(free) > 1 and not set(free) <= set(request.names):
        # All generators are in the mixture: take out the smallest one for validation.
        smallest = min(fit.shares, key=lambda name: fit.shares[name])
        rest = [name for name in free if name != smallest]
        shares = equal_parts(request.names, fitter.fit(rest).shares)
        judge = next((name for name in nearest if name not in shares), None)
    # If the user named all generators, the nearest one validates with other random numbers.
    return GeneratorChoice(shares, judge or nearest[0], {})


def _is_stated(request: CalibrationRequest, validation: str, *, held_out: bool) -> bool:
    """Return whether the user named all generators, so that no measurement decides anything."""
    stated = bool(request.names) and PROCEDURAL not in request.names
    return stated and (held_out or validation != AUTO)


def _validation_generator(
    validation: str, ranked: Mapping[str, float], request: CalibrationRequest
) -> str:
    """Return the best generator that the search leaves free, or the one the user named."""
    if validation != AUTO:
        return validation
    free = [name for name in ranked if name not in request.names]
    if not free:
        return next(iter(ranked))  # the user named all generators: other random numbers must do
    # `procedural` searches on the best generator, so the runner-up validates.
    shared = PROCEDURAL in request.names or not request.names
    return free[1] if len(free) > 1 and shared else free[0]


def shares_by_name(
    names: Sequence[str], information: Mapping[str, float], validation: str | None
) -> dict[str, float]:
    """Return the share of each generator for the names that the user gave; see `equal_parts`.

    `procedural` stands for all generators except that of the validation inputs, weighted by the
    softmax of their mutual `information` in nats.
    """
    likely: dict[str, float] = {}
    if PROCEDURAL in names or not names:
        free = {name: value for name, value in information.items() if name != validation}
        logits = torch.tensor(list(free.values()), dtype=torch.float64) / TEMPERATURE
        shares = zip(free, logits.softmax(0).tolist(), strict=True)
        likely = {name: share for name, share in shares if share >= MIN_SHARE}
    return equal_parts(names, likely)


def equal_parts(names: Sequence[str], procedural: Mapping[str, float]) -> dict[str, float]:
    """Return the share of each generator if every name gets an equal part.

    `procedural` are the generators and weights that this name, or no name at all, stands for.
    """
    names = list(dict.fromkeys(names)) or [PROCEDURAL]
    shares: dict[str, float] = {}
    for name in names:
        parts = procedural if name == PROCEDURAL else {name: 1.0}
        total = sum(parts.values())
        for key, part in parts.items():
            shares[key] = shares.get(key, 0.0) + part / total / len(names)
    return shares
