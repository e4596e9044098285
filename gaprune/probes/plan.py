"""Which probes a run uses: what selects, what steers gradient steps, what judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gaprune.config import Settings
from gaprune.errors import InputError
from gaprune.inputs import InputSpec
from gaprune.observe import Observer, Silence
from gaprune.probes.affinity import affinities
from gaprune.probes.impressions import impressions
from gaprune.probes.inversion import Inversion
from gaprune.probes.inverted import inverted_samples
from gaprune.probes.mixture import Mixture, as_network, mix_generators
from gaprune.probes.procedural import GENERATORS
from gaprune.probes.receipt import make_receipt
from gaprune.probes.requests import (
    AUTO,
    INVERSION,
    NOISY,
    PROCEDURAL,
    Request,
    generators,
    parse_file,
    parse_probes,
    read,
)
from gaprune.probes.samples import Samples
from gaprune.records import Receipt
from gaprune.target import Target

GUARD_FRACTION = 0.2  # of a file, held out to judge


@dataclass(frozen=True)
class ProbePlan:
    """Everything that is shown to the network.

    Attributes:
        search: candidates are selected on these.
        guard: the candidates that led the search are judged on these, which never steer it.
        fresh: new inputs for gradient steps, or None.
        pool: held inputs for gradient steps, or None.
        pool_share: the part of a gradient batch that comes from `pool`.
        receipt: all of it in words and hashes.
        affinity: mutual information of each procedural generator in nats, best first; empty where
            only files are shown.
    """

    search: Samples
    guard: Samples
    fresh: Mixture | None
    pool: Samples | None
    pool_share: float
    receipt: Receipt
    affinity: Mapping[str, float]


def plan_probes(
    target: Target,
    settings: Settings,
    generator: torch.Generator,
    observer: Observer | None = None,
) -> ProbePlan:
    """Make the probes that the settings ask for.

    `procedural` means: the teacher weighs the generators of its kind (`affinities`); the runner-up
    is set aside as guard, the others share the batch by their affinity. A file is split: a part is
    held out as guard.

    Raises:
        InputError: an unknown probe or guard, or a file that does not fit the network.
    """
    spec = target.inputs
    request = parse_probes(settings.probes, spec)
    held = [(file.rung, _typed(read(file, spec), target)) for file in request.files]
    from_file = bool(held) and settings.guard == AUTO
    generated = bool(request.names) or request.impressions or request.inversion
    affinity: dict[str, float] = {}
    if generated or not from_file:
        table = GENERATORS[spec.kind]
        affinity = affinities(target.model, spec, table, generator, target.dtype)
    judge = None if from_file else _judge(settings.guard, affinity, request)
    mixture = Mixture(spec, mix_generators(request.names, affinity, judge), target.dtype)
    fresh = mixture if request.names else None
    guard, held = _split_guard(settings, judge, held, target, generator)
    if request.impressions:
        held.append((INVERSION, _synthesise(target, mixture, settings.impressions, generator)))
    if request.inversion:
        how = Inversion(seconds=settings.probe_budget)
        count, listener = settings.inversions, observer or Silence()
        inverted = inverted_samples(target, mixture, count, generator, how, listener)
        held.append((INVERSION, inverted))

    pool = _join([samples for _, samples in held])
    if pool is not None:
        pool = _pick(pool, _shuffle(pool, generator)[: settings.pool_count])
    share = 0.0 if pool is None else 1.0 if fresh is None else 0.5
    search = _search_set(settings.probe_count, fresh, pool, share, generator)
    sources = [samples.source for _, samples in held]
    if fresh is not None:
        sources.append(f"generated, fresh at every gradient step: {fresh.description}")
    receipt = make_receipt(
        requested_rungs(settings, spec),
        sources,
        pool or search,
        guard,
        fresh=fresh is not None,
    )
    return ProbePlan(search, guard, fresh, pool, share, receipt, affinity)


def requested_rungs(settings: Settings, spec: InputSpec) -> list[str]:
    """Return every rung of the data ladder that the settings ask for; nothing is read or made.

    Raises:
        InputError: an unknown probe or guard.
    """
    request = parse_probes(settings.probes, spec)
    return [
        *(file.rung for file in request.files),
        *([INVERSION] if request.impressions or request.inversion else []),
        *(NOISY if name == NOISY else PROCEDURAL for name in request.names),
        *([] if settings.guard == AUTO else [_guard_rung(settings.guard, spec)]),
    ]


def _guard_rung(guard: str, spec: InputSpec) -> str:
    """Return the rung of a stated guard: it chooses the final candidate, so it counts."""
    known = generators(spec)
    if guard in known:
        return NOISY if guard == NOISY else PROCEDURAL
    return parse_file("guard", guard, [AUTO, *known]).rung


def _judge(guard: str, affinity: Mapping[str, float], request: Request) -> str | None:
    """Name the generator that judges: the runner-up, or the best one that the search lacks."""
    if guard != AUTO:
        return guard
    rest = [name for name in affinity if name not in request.names]
    if not rest:
        return next(iter(affinity))  # all are in the search: another seed must do
    runner_up = len(rest) > 1 and (PROCEDURAL in request.names or not request.names)
    return rest[1] if runner_up else rest[0]


def _split_guard(
    settings: Settings,
    judge: str | None,
    held: list[tuple[str, Samples]],
    target: Target,
    generator: torch.Generator,
) -> tuple[Samples, list[tuple[str, Samples]]]:
    """Make the guard set: a part of the first file, a generator's inputs, or a file of its own."""
    count, spec = settings.guard_count, target.inputs
    if judge is None:
        rung, samples = held[0]
        order = _shuffle(samples, generator)
        if len(order) < 2:
            raise InputError(
                f"probes: {samples.source} must hold at least 2 inputs, one to search on and one "
                f"to judge on; got {len(order)}"
            )
        out = min(count, max(1, int(GUARD_FRACTION * len(order))))
        guard = _pick(samples, order[:out])._replace(source=f"held-out part of {samples.source}")
        return guard, [(rung, _pick(samples, order[out:])), *held[1:]]
    if judge in generators(spec):
        inputs = Mixture(spec, {judge: 1.0}, target.dtype).draw(count, generator)
        return Samples(inputs, None, f"generated: {judge}, from another seed"), held
    file = parse_file("guard", judge, [AUTO, *generators(spec)])
    samples = _typed(read(file, spec), target)
    return _pick(samples, _shuffle(samples, generator)[:count]), held


def _synthesise(
    target: Target, mixture: Mixture, count: int, generator: torch.Generator
) -> Samples:
    starts = mixture.draw_unit(count, generator).to(target.dtype)
    made = impressions(target.model, target.inputs, starts, generator)
    source = f"{count} class impressions, started from {mixture.description}"
    return Samples(as_network(target.inputs, made, target.dtype), None, source)


def _search_set(
    count: int,
    fresh: Mixture | None,
    pool: Samples | None,
    share: float,
    generator: torch.Generator,
) -> Samples:
    """Draw the inputs that select, in random order, so that every rung is a fair sample."""
    parts: list[Samples] = []
    if pool is not None:
        parts.append(_pick(pool, _shuffle(pool, generator)[: max(1, round(count * share))]))
    if fresh is not None:
        rest = max(1, count - sum(len(part.inputs) for part in parts))
        parts.append(Samples(fresh.draw(rest, generator), None, fresh.description))
    joined = _join(parts)
    assert joined is not None  # a request names at least one source
    return _pick(joined, _shuffle(joined, generator))


def _join(parts: Sequence[Samples]) -> Samples | None:
    """Concatenate; labels survive only where every part has them."""
    if not parts:
        return None
    labels = [part.labels for part in parts if part.labels is not None]
    return Samples(
        torch.cat([part.inputs for part in parts]),
        torch.cat(labels) if len(labels) == len(parts) else None,
        "; ".join(part.source for part in parts),
    )


def _pick(samples: Samples, index: Tensor) -> Samples:
    labels = None if samples.labels is None else samples.labels[index]
    return Samples(samples.inputs[index], labels, samples.source)


def _shuffle(samples: Samples, generator: torch.Generator) -> Tensor:
    return torch.randperm(len(samples.inputs), generator=generator)


def _typed(samples: Samples, target: Target) -> Samples:
    floating = samples.inputs.is_floating_point()
    return samples._replace(inputs=samples.inputs.to(target.dtype)) if floating else samples
