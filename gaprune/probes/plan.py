"""Which probes a run uses: the search set, the fresh or held inputs of gradient steps, the guard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gaprune.config import Settings
from gaprune.errors import InputError, unknown_name
from gaprune.inputs import InputSpec
from gaprune.probes.affinity import affinities, shares
from gaprune.probes.draws import Generator_, to_network
from gaprune.probes.files import ALIASES, read_probes
from gaprune.probes.impressions import impressions
from gaprune.probes.noise import NOISE
from gaprune.probes.procedural import GENERATORS
from gaprune.probes.receipt import make_receipt
from gaprune.probes.samples import Samples
from gaprune.records import Receipt
from gaprune.target import Target

PROCEDURAL, IMPRESSIONS, NOISY, AUTO = "procedural", "impressions", "noise", "auto"
FILE_RUNGS = ("unlabelled", "labelled", "proxy")  # prefixes of a path; a bare path is unlabelled
NEGLIGIBLE = 0.01  # a generator with a smaller share of the batch is left out
GUARD_FRACTION = 0.2  # of a file, held out to judge


@dataclass(frozen=True)
class Mixture:
    """Generators and their shares: fresh inputs at every call.

    Attributes:
        spec: what one input looks like.
        portions: generator name → share of a batch; they add up to 1.
        dtype: what the network computes in (token ids stay int64).
    """

    spec: InputSpec
    portions: Mapping[str, float]
    dtype: torch.dtype = torch.float32

    def draw_unit(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw `[count, *spec.shape]` in the unit range."""
        table = _generators(self.spec)
        chances = torch.tensor(list(self.portions.values()), dtype=torch.float64)
        drawn = torch.multinomial(chances, count, replacement=True, generator=generator)
        counts = drawn.bincount(minlength=len(chances)).tolist()
        return torch.cat(
            [
                table[name](self.spec, many, generator)
                for name, many in zip(self.portions, counts, strict=True)
                if many
            ]
        )

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw `[count, *spec.shape]` as the network takes them."""
        return _as_network(self.spec, self.draw_unit(count, generator), self.dtype)


@dataclass(frozen=True)
class ProbePlan:
    """Everything that is shown to the network.

    Attributes:
        search: candidates are selected on these.
        guard: candidates are judged on these, which never select.
        fresh: new inputs for gradient steps, or None.
        pool: held inputs for gradient steps, or None.
        pool_share: the part of a gradient batch that comes from `pool`.
        receipt: all of it in words and hashes.
        affinity: mutual information of each procedural generator in nats, best first.
    """

    search: Samples
    guard: Samples
    fresh: Mixture | None
    pool: Samples | None
    pool_share: float
    receipt: Receipt
    affinity: Mapping[str, float] = field(default_factory=dict)


def plan_probes(target: Target, settings: Settings, generator: torch.Generator) -> ProbePlan:
    """Make the probes that the settings ask for.

    `procedural` means: the teacher weighs the generators of its kind (`affinities`); the runner-up
    is set aside as guard, the others share the batch by their affinity.

    Raises:
        InputError: an unknown probe or guard, or a file that does not fit the network.
    """
    spec = target.inputs
    names, files, synthesise = _sort(settings.probes, spec)
    table = _generators(spec)
    procedural = GENERATORS[spec.kind]
    affinity = affinities(target.model, spec, procedural, generator, target.dtype)
    guard_name = _guard_name(settings.guard, affinity, names)
    mixture = None
    if names or synthesise:
        chosen = {name: affinity[name] for name in affinity if name != guard_name}
        explicit = [name for name in names if name != PROCEDURAL]
        portions = shares(chosen) if PROCEDURAL in names or not names else {}
        portions = {name: part for name, part in portions.items() if part >= NEGLIGIBLE}
        total = sum(portions.values()) or 1.0
        parts = len(explicit) + bool(portions)
        portions = {name: part / total / parts for name, part in portions.items()}
        for name in explicit:
            portions[name] = portions.get(name, 0.0) + 1 / parts
        mixture = Mixture(spec, {n: p for n, p in portions.items() if n in table}, target.dtype)
    held = [_read(text, target) for text in files]
    guard, held = _make_guard(settings, guard_name, held, target, generator)
    if synthesise and mixture is not None:
        held.append(_synthesise(target, mixture, settings.impressions, generator))
    fresh = mixture if names else None
    pool = _join([samples for _, samples in held])
    share = 0.0 if pool is None else 1.0 if fresh is None else 0.5
    search = _search_set(settings, fresh, pool, share, generator)
    rungs = [rung for rung, _ in held] + [_rung(name) for name in names] or ["none"]
    sources = [samples.source for _, samples in held]
    if fresh is not None:
        listing = ", ".join(f"{name} {part:.0%}" for name, part in fresh.portions.items())
        sources.append(f"fresh generated inputs at every step: {listing}")
    kept = pool if fresh is None and pool is not None else search
    receipt = make_receipt(rungs, sources, kept, guard, fresh=fresh is not None)
    return ProbePlan(search, guard, fresh, pool, share, receipt, affinity)


def valid_probes(spec: InputSpec) -> list[str]:
    """Return every name that `--probes` takes for this kind of input, files aside."""
    return [PROCEDURAL, IMPRESSIONS, NOISY, *GENERATORS[spec.kind], *ALIASES]


def _generators(spec: InputSpec) -> dict[str, Generator_]:
    return {**GENERATORS[spec.kind], NOISY: NOISE[spec.kind]["uniform"]}


def _rung(name: str) -> str:
    return NOISY if name == NOISY else PROCEDURAL


def _sort(probes: Sequence[str], spec: InputSpec) -> tuple[list[str], list[str], bool]:
    """Split `--probes` into generator names, files, and whether impressions are wanted."""
    if not probes:
        raise InputError(f"probes: name at least one of {', '.join(valid_probes(spec))}, or a file")
    table = _generators(spec)
    names = [name for name in probes if name == PROCEDURAL or name in table]
    files = [name for name in probes if name not in names and name != IMPRESSIONS]
    for text in files:
        path = text.partition(":")[2] if text.partition(":")[0] in FILE_RUNGS else text
        if path not in ALIASES and not any(mark in path for mark in "./\\+") and not _exists(path):
            raise unknown_name("probes", text, [*valid_probes(spec), "PATH", "proxy:PATH", "labelled:PATH"])
    return names, files, IMPRESSIONS in probes


def _exists(path: str) -> bool:
    from pathlib import Path

    return bool(path) and Path(path).exists()


def _guard_name(guard: str, affinity: Mapping[str, float], names: Sequence[str]) -> str | None:
    """Choose the generator that judges: the runner-up, or the best one that the search lacks."""
    if guard != AUTO:
        return guard if guard in affinity else None
    rest = [name for name in affinity if name not in names]
    if not rest:
        return next(iter(affinity))
    return rest[1] if len(rest) > 1 and (PROCEDURAL in names or not names) else rest[0]


def _make_guard(
    settings: Settings,
    guard_name: str | None,
    held: list[tuple[str, Samples]],
    target: Target,
    generator: torch.Generator,
) -> tuple[Samples, list[tuple[str, Samples]]]:
    count = settings.guard_count
    if settings.guard != AUTO and guard_name is None:
        return _read_guard(settings.guard, target, count, generator), held
    if settings.guard == AUTO and held:
        rung, samples = held[0]
        order = torch.randperm(len(samples.inputs), generator=generator)
        out = min(count, max(1, int(GUARD_FRACTION * len(order))))
        if len(order) < 2:
            raise InputError(f"probes: {samples.source} must hold at least 2 inputs, one to search on and one to judge")
        judge = _pick(samples, order[:out])._replace(source=f"held-out part of {samples.source}")
        return judge, [(rung, _pick(samples, order[out:])), *held[1:]]
    assert guard_name is not None
    inputs = Mixture(target.inputs, {guard_name: 1.0}, target.dtype).draw(count, generator)
    return Samples(inputs, None, f"procedural: {guard_name}, generated once"), held


def _read_guard(text: str, target: Target, count: int, generator: torch.Generator) -> Samples:
    if text == NOISY:
        inputs = Mixture(target.inputs, {NOISY: 1.0}, target.dtype).draw(count, generator)
        return Samples(inputs, None, "noise, generated once")
    if not any(mark in text for mark in "./\\+:") and text not in ALIASES and not _exists(text):
        raise unknown_name("guard", text, [AUTO, NOISY, *GENERATORS[target.inputs.kind], *ALIASES, "PATH"])
    _, samples = _read(text, target)
    order = torch.randperm(len(samples.inputs), generator=generator)[:count]
    return _pick(samples, order)


def _read(text: str, target: Target) -> tuple[str, Samples]:
    head, _, tail = text.partition(":")
    rung, path = (head, tail) if head in FILE_RUNGS else (FILE_RUNGS[0], text)
    samples = read_probes(path, target.inputs)
    if target.inputs.kind != "tokens":
        samples = samples._replace(inputs=samples.inputs.to(target.dtype))
    if rung != "labelled":
        return rung, samples._replace(labels=None, source=samples.source.replace("labelled)", "labels not used)") if samples.labels is not None else samples.source)
    if samples.labels is None:
        raise InputError(
            f"probes: {text} holds no labels; drop the prefix 'labelled:', or give a file with "
            "labels (npz keys x and y, or IMAGES+LABELS)"
        )
    return rung, samples


def _synthesise(
    target: Target, mixture: Mixture, count: int, generator: torch.Generator
) -> tuple[str, Samples]:
    starts = mixture.draw_unit(count, generator)
    made = impressions(target.model, target.inputs, starts, generator)
    inputs = _as_network(target.inputs, made, target.dtype)
    return "inversion", Samples(inputs, None, f"{count} class impressions from procedural starts")


def _search_set(
    settings: Settings,
    fresh: Mixture | None,
    pool: Samples | None,
    share: float,
    generator: torch.Generator,
) -> Samples:
    parts: list[Samples] = []
    if pool is not None:
        many = min(len(pool.inputs), round(settings.probe_count * share))
        parts.append(_pick(pool, torch.randperm(len(pool.inputs), generator=generator)[:many]))
    if fresh is not None:
        made = settings.probe_count - sum(len(part.inputs) for part in parts)
        parts.append(Samples(fresh.draw(max(1, made), generator), None, "generated"))
    joined = _join(parts)
    assert joined is not None
    order = torch.randperm(len(joined.inputs), generator=generator)  # every rung is a fair sample
    return _pick(joined, order)


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


def _as_network(spec: InputSpec, unit: Tensor, dtype: torch.dtype) -> Tensor:
    inputs = to_network(spec, unit)
    return inputs if spec.kind == "tokens" else inputs.to(dtype)
