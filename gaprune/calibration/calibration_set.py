"""Which calibration inputs a run uses: what selects, what steers gradient steps, what judges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from gaprune.calibration.auto import resolve_calibration
from gaprune.calibration.generators.draws import to_network
from gaprune.calibration.generators.mixture import GeneratorMixture
from gaprune.calibration.generators.sequences import sequence_samples
from gaprune.calibration.inversion.augment import with_variants
from gaprune.calibration.inversion.batchnorm import Inversion
from gaprune.calibration.inversion.impressions import impressions, moving_axes
from gaprune.calibration.inversion.inverted_samples import inverted_samples
from gaprune.calibration.parse import (
    AUTO,
    INVERSION,
    NOISY,
    PROCEDURAL,
    Request,
    available_generators,
    parse_file,
)
from gaprune.calibration.provenance import make_provenance
from gaprune.calibration.samples import Samples, concatenate
from gaprune.calibration.validation import mix_validation, split_validation
from gaprune.calibration.weigh import weigh
from gaprune.callbacks import Observer
from gaprune.config import Settings
from gaprune.models.input_spec import InputSpec
from gaprune.models.target import Target
from gaprune.records import Provenance


@dataclass(frozen=True)
class CalibrationSet:
    """Everything that is shown to the network.

    Attributes:
        search: candidates are selected on these.
        validation: the candidates that led the search are judged on these, which never steer it.
        mixture: new inputs for gradient steps, or None.
        gradient_inputs: stored inputs for gradient steps, or None.
        gradient_share: the part of a gradient batch that comes from `gradient_inputs`.
        augment: whether `gradient_inputs` are shifted and mirrored anew for every batch.
        domain_inputs: what comes nearest to the domain: files or inverted inputs without the generated
            ones beside them, or else `search`.
            Statistics are measured on them: those that criteria look at, and those of repair.
        provenance: all of it in words and hashes.
        mutual_information: mutual information of each procedural generator in nats, best first; empty where
            only files are shown, or BatchNorm statistics weigh the generators.
    """

    search: Samples
    validation: Samples
    mixture: GeneratorMixture | None
    gradient_inputs: Samples | None
    gradient_share: float
    augment: bool
    domain_inputs: Samples
    provenance: Provenance
    mutual_information: Mapping[str, float]


def make_calibration_set(
    target: Target,
    settings: Settings,
    generator: torch.Generator,
    observer: Observer | None = None,
) -> CalibrationSet:
    """Make the calibration inputs that the settings ask for.

    `procedural` means: the teacher weighs the generators of its kind (`weigh`); one is set aside as
    validation, the others share the batch. A file is split: a part is held out as validation. Beside inverted
    inputs the validation inputs holds some of them as well (`mix_validation`).

    Raises:
        InputError: an unknown calibration input or validation, or a file that does not fit the network.
    """
    spec, listener = target.inputs, observer or Observer()
    decision = resolve_calibration(settings.calibration, target)
    decision.tell(listener)
    request = decision.request
    held = [(file.level, file.read(spec).to(target.dtype)) for file in request.files]
    from_file = bool(held) and settings.validation == AUTO
    weights = weigh(target, request, settings.validation, generator, held_out=from_file)
    mixture = GeneratorMixture(spec, weights.shares, target.dtype)
    fresh = mixture if request.names else None
    validation, held = split_validation(
        weights.judge, settings.validation_count, held, target, generator
    )
    if request.impressions:
        made = _synthesise(target, mixture, settings, generator, listener)
        held.append((INVERSION, made))
    if request.inversion:
        how, count = Inversion(seconds=settings.calibration_seconds), settings.inversions
        made = inverted_samples(target, mixture, count, generator, how, listener)
        if settings.validation == AUTO and not from_file:
            validation, made = mix_validation(made, validation, generator)
        held.append((INVERSION, with_variants(made, spec, generator)))

    pool = concatenate([samples for _, samples in held])
    if pool is not None:
        pool = pool.take(pool.random_order(generator)[: settings.gradient_count])
    share = 0.0 if pool is None else 1.0 if fresh is None else 0.5
    search = _search_set(settings.calibration_count, fresh, pool, share, generator)
    reference = search
    if fresh is not None and pool is not None and not request.impressions:
        reference = pool.take(torch.arange(min(len(pool.inputs), settings.calibration_count)))
    sources = [samples.source for _, samples in held]
    if fresh is not None:
        sources.append(f"generated for gradient steps: {fresh.description}")
    if decision.choice is not None:
        sources.append(decision.choice.sentence)
    provenance = make_provenance(
        _levels(request, settings.validation, spec),
        sources,
        pool or search,
        validation,
        fresh=fresh is not None,
    )
    augment_pool = request.inversion and not request.files and bool(moving_axes(spec))
    return CalibrationSet(
        search,
        validation,
        fresh,
        pool,
        share,
        augment_pool,
        reference,
        provenance,
        weights.mutual_information,
    )


def requested_data_levels(settings: Settings, target: Target) -> list[str]:
    """Return every level that the settings ask for; no file is read.

    With `auto`, a network with BatchNorm is shown generated inputs to decide.

    Raises:
        InputError: an unknown calibration input or validation.
    """
    return _levels(
        resolve_calibration(settings.calibration, target).request,
        settings.validation,
        target.inputs,
    )


def _levels(request: Request, validation: str, spec: InputSpec) -> list[str]:
    return [
        *(file.level for file in request.files),
        *([INVERSION] if request.impressions or request.inversion else []),
        *(NOISY if name == NOISY else PROCEDURAL for name in request.names),
        *([] if validation == AUTO else [_validation_level(validation, spec)]),
    ]


def _validation_level(validation: str, spec: InputSpec) -> str:
    """Return the level of a stated validation: it chooses the final candidate, so it counts."""
    known = available_generators(spec)
    if validation in known:
        return NOISY if validation == NOISY else PROCEDURAL
    return parse_file("validation", validation, [AUTO, *known]).level


def _synthesise(
    target: Target,
    mixture: GeneratorMixture,
    settings: Settings,
    generator: torch.Generator,
    observer: Observer,
) -> Samples:
    """Make class impressions, or what token ids have in their place."""
    count = settings.impressions
    if target.inputs.kind == "tokens":
        seconds = settings.calibration_seconds
        return sequence_samples(target, mixture, count, generator, seconds, observer)
    starts = mixture.draw_unit(count, generator).to(target.device, target.dtype)
    made = impressions(target.model, target.inputs, starts, generator).cpu()
    source = f"{count} class impressions, started from {mixture.description}"
    return Samples(to_network(target.inputs, made, target.dtype), None, source)


def _search_set(
    count: int,
    fresh: GeneratorMixture | None,
    pool: Samples | None,
    share: float,
    generator: torch.Generator,
) -> Samples:
    """Draw the inputs that select, in random order, so that every level is a fair sample."""
    parts: list[Samples] = []
    if pool is not None:
        parts.append(pool.take(pool.random_order(generator)[: max(1, round(count * share))]))
    if fresh is not None:
        rest = max(1, count - sum(len(part.inputs) for part in parts))
        parts.append(Samples(fresh.draw(rest, generator), None, fresh.description))
    joined = concatenate(parts)
    assert joined is not None  # a request names at least one source
    return joined.take(joined.random_order(generator))
